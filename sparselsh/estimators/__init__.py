"""Networks as scikit-learn estimators: LSHClassifier and LSHRegressor.

An estimator builds a :class:`~sparselsh.Network` of `Linear` and `LSHLinear` layers for its
training data, converts labels to ids and back, and keeps the network as `network_`. Parameters and
attributes have the names of scikit-learn's MLPClassifier where they mean the same.

    fit ─► data (names, classes, sample weights) ─► network ─► fit of the network ─► attributes

    _base        parameters, checks, fit and partial_fit, common to both estimators
    _classifier  LSHClassifier: classes and labels, probabilities, thresholds
    _regressor   LSHRegressor: scaled targets

Only this package needs scikit-learn: ``pip install "sparselsh-nn[sklearn]"``.
"""
try:
    from ._classifier import LSHClassifier
    from ._regressor import LSHRegressor
except ImportError as error:
    raise ImportError('sparselsh.estimators needs scikit-learn 1.6 or later; '
                      'type: pip install "sparselsh-nn[sklearn]"') from error

__all__ = ["LSHClassifier", "LSHRegressor"]
