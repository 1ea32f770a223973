"""What several trained models share, as functions and small modules; nothing here knows a model or the training loop.

    examples     what one training example is: a next click, a user with all clicks; sampled negatives
    histories    histories as weights: recency-weighted means of item vectors
    embeddings   layer-0 embeddings of a user–item graph, and the layers over it that a training step sees
    fold_in      a vector for a user who was not there in training
    scoring      dot product or cosine, popularity, rows of new items
    losses       ranking losses
    align        contrastive alignment of two vectors per entity, with a queue
    gate         the context gate of the hybrid
    dropout      dropout of values and of items
    vectors      rows of unit length
    state        one state nested in another

Whatever is random is a function of where the training stands (`rng.At`), so every step can be repeated alone.
"""
