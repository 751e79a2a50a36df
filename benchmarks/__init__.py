"""Measurements that documents quote; each prints its figures itself."""
