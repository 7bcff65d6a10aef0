"""The same model trained in one place on every speaker's recordings: what to compare with.

python centralised.py [EPOCHS]
"""

import sys

from app import evaluate, model, share, train
from source import recordings

if __name__ == "__main__":
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    everything, trained = share(recordings()), model()
    settings = {"epochs": 1, "lr": 0.002, "lr_decay": 0.95, "batch_size": 32}
    for epoch in range(1, epochs + 1):
        said = train(trained, everything, {**settings, "server-round": epoch})
        accuracy = evaluate(trained, everything)["accuracy"]
        print(
            f"epoch {epoch:>2}  loss {said['loss']:.3f}  test accuracy {accuracy:.1%}", flush=True
        )
