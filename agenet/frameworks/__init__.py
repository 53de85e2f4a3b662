"""The same networks in PyTorch and Keras: weights ported out, frameworks compared."""
