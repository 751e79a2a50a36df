"""A batch, two images in one prompt, and a conversation whose answers come word by word."""

import edgeprune

model = edgeprune.load("demo/examples/bundle")
square, tall, wide = (f"samples/pictures/{name}.png" for name in ("square", "tall", "wide"))

# A list of prompts, and for each a list of its images: all that fit into a batch run together.
questions = ["what color is the star", "what shape is red", "what shape is green"]
for question, reply in zip(questions, model.generate(questions, [[square], [tall], [wide]]), strict=True):
    print(f"{question}: {reply.text} (a batch of {reply.statistics.batch})")

# Images stand in front of the text, unless the prompt says by the image token where each goes.
reply = model.generate("what shape is red", [square, tall])
print(f"two images: {reply.text}, {reply.statistics.kept} of {reply.statistics.visual_tokens} visual tokens")

# A conversation. The images are handed over in the order of their places in it.
messages = []
for question in ("what color is the star", "what shape is yellow"):
    parts = [{"type": "text", "text": question}]
    messages.append({"role": "user", "content": parts if messages else [{"type": "image"}, *parts]})
    print(f"{question}: ", end="")
    reply = model.generate(messages, [square], stream=lambda piece: print(piece, end="", flush=True))
    print()
    messages.append({"role": "assistant", "content": [{"type": "text", "text": reply.text}]})
