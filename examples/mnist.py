"""Train the network of the classic tutorial with scikit-learn's names, save it, use it again."""

from pathlib import Path
from tempfile import TemporaryDirectory

from fastce.mlp import MLPClassifier, load_mnist

X, y, X_test, y_test = load_mnist()  # load_mnist("folder") reads the full set
clf = MLPClassifier(hidden_layer_sizes=(128,), max_iter=5).fit(X, y)
print(f"accuracy {clf.score(X_test, y_test):.4f} after {clf.n_iter_} epochs")

with TemporaryDirectory() as folder:
    clf.save(Path(folder) / "model.npz")
    again = MLPClassifier.load(Path(folder) / "model.npz")
print("the first ten test images:", again.predict(X_test[:10]), "should be", y_test[:10])
