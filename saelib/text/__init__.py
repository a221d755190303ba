"""From packages, files or a hub's token data set to contexts of tokens, split by document.

One writer of token stores. Knows no models; imports base.
"""
