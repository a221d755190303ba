"""From packages, files or a hub's token data set to contexts of tokens, split by document.

Holds the one writer of token stores. Knows no models, only a vocabulary; imports base. Offers `tokens.TokenStore`,
`corpus.build_token_store` (the study's text), `own_text.own_tokens` (a user's), `hub_data.pretokenised_store`.
"""
