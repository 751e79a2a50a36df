"""Asks one question at several keep ratios, with and without debiasing."""

import edgeprune

model = edgeprune.load("demo/examples/bundle")
question, images = "what shape is green", ["samples/pictures/wide.png"]

print(f"exported as {model.manifest.plan.describe()}")
for choice in ({}, {"keep": 0.1}, {"keep": 1}, {"debias": "none"}, {"keep": 0.1, "debias": "none"}):
    reply = model.generate(question, images, **choice)
    found = reply.statistics
    counts = f"{found.kept[0]} of {found.visual_tokens} kept, {found.padded_kept[0]} padding"
    print(f"{choice or 'as exported'}: {reply.text}; {counts}")

# Which ones: the n-th visual token of the image, from its upper left corner, row by row.
print("kept:", model.generate(question, images, keep=0.05).kept_visual[0])
