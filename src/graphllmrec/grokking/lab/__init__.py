"""The grokking lab: small training runs, with and without late generalisation, to score detection rules on."""
