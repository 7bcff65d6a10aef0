"""Every strategy of Flower's, with arguments that make it do something, and its client mod."""

from flwr.serverapp import strategy as s

# Differential privacy with so little noise that the result is that of the strategy inside.
QUIET = 1e-9


def fedavg():
    return s.FedAvg()


CASES = {
    "FedAvg": (fedavg, ""),
    "FedAvg+sizes": (fedavg, "sizes"),
    "FedAvg+local-dp": (fedavg, "local-dp"),
    "FedProx": (lambda: s.FedProx(proximal_mu=0.1), ""),
    "FedAvgM": (lambda: s.FedAvgM(server_learning_rate=0.9, server_momentum=0.5), ""),
    "FedAdagrad": (s.FedAdagrad, ""),
    "FedAdam": (s.FedAdam, ""),
    "FedYogi": (s.FedYogi, ""),
    "FedMedian": (s.FedMedian, ""),
    "FedTrimmedAvg": (lambda: s.FedTrimmedAvg(beta=0.2), ""),
    "Krum": (lambda: s.Krum(num_malicious_nodes=1), ""),
    "MultiKrum": (lambda: s.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=2), ""),
    "Bulyan": (lambda: s.Bulyan(num_malicious_nodes=0), ""),
    "QFedAvg": (lambda: s.QFedAvg(client_learning_rate=0.1, q=0.2), ""),
    "DP-server-fixed": (
        lambda: s.DifferentialPrivacyServerSideFixedClipping(fedavg(), QUIET, 1e3, 5),
        "",
    ),
    "DP-client-fixed": (
        lambda: s.DifferentialPrivacyClientSideFixedClipping(fedavg(), QUIET, 1e3, 5),
        "fixed",
    ),
    "DP-server-adaptive": (
        lambda: s.DifferentialPrivacyServerSideAdaptiveClipping(
            fedavg(), 0.0, 5, initial_clipping_norm=1e3, clipped_count_stddev=0.0
        ),
        "",
    ),
    "DP-client-adaptive": (
        lambda: s.DifferentialPrivacyClientSideAdaptiveClipping(
            fedavg(), 0.0, 5, initial_clipping_norm=1e3, clipped_count_stddev=0.0
        ),
        "adaptive",
    ),
}
TREES = {"FedXgbBagging": s.FedXgbBagging, "FedXgbCyclic": s.FedXgbCyclic}
