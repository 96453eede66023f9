"""A training loop of one's own: softmax regression on MNIST; loss and gradient are fastce's."""

import numpy as np

import fastce
from fastce.mlp import load_mnist

X, y, X_test, y_test = load_mnist()
rng = np.random.default_rng(0)
weight = np.zeros((784, 10), np.float32)
grad = np.empty((100, 10), np.float32)

for epoch in range(1, 6):
    losses = []
    for rows in rng.permutation(len(X)).reshape(-1, 100):
        loss, _ = fastce.cross_entropy_with_grad(X[rows] @ weight, y[rows], out=grad)
        weight -= 0.2 * (X[rows].T @ grad)
        losses.append(loss)
    accuracy = np.mean((X_test @ weight).argmax(axis=1) == y_test)
    print(f"epoch {epoch} loss {np.mean(losses):.4f} test accuracy {accuracy:.4f}")
