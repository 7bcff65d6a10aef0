"""The models that the export benchmark takes: trained once, their weights kept in .bench/export."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks._measure import QUICK, REPO

KEPT = REPO / ".bench" / "export"
TIMEOUT_S = 3600
# In a process of its own: two examples have modules of the same name.
PROGRAM = """
import sys, importlib
import numpy as np
import torch
folder, module, target, epochs, lr = sys.argv[1:]
sys.path.insert(0, folder)
app = importlib.import_module(module)
torch.manual_seed(1)
made = app.model()
inputs, labels = (torch.as_tensor(each) for each in app.training())
optimizer = torch.optim.AdamW(made.parameters(), lr=float(lr))
dice = torch.Generator().manual_seed(1)
steps = int(epochs) * -(-len(labels) // 32)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3 * float(lr), total_steps=steps)
made.train()
for epoch in range(int(epochs)):
    for rows in torch.randperm(len(labels), generator=dice).split(32):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(made(inputs[rows]), labels[rows])
        if len(rows) > 1:
            loss.backward()
            optimizer.step()
        schedule.step()
    print(f"epoch {epoch + 1} loss {loss.item():.4f}", flush=True)
np.savez(target, **{name: value.numpy() for name, value in made.state_dict().items()})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model: where it is, what kind of layers it has, how long it is trained."""

    name: str
    folder: str
    module: str
    kind: str  # "cnn" or "sequence"
    epochs: int
    rate: float = 1e-3
    needs_data: bool = False  # $SKERRY_DATA, or the network

    def weights(self) -> Path:
        """Return the trained weights, trained now when they are not here yet."""
        epochs = max(1, self.epochs // 4) if QUICK else self.epochs
        target = KEPT / f"{self.name}-{epochs}.npz"
        if not target.exists():
            KEPT.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f"new-{target.name}")
            place = str(REPO / self.folder)
            arguments = [place, self.module, str(beside), str(epochs), str(self.rate)]
            subprocess.run(
                [sys.executable, "-c", PROGRAM, *arguments], check=True, timeout=TIMEOUT_S
            )
            beside.replace(target)
        return target


ARCHITECTURES = "examples/architectures"
MODELS = (
    Model(name="cnn", folder=ARCHITECTURES, module="cnn", kind="cnn", epochs=8),
    Model(name="mobilenet", folder=ARCHITECTURES, module="mobilenet", kind="cnn", epochs=12),
    Model(
        name="transformer", folder=ARCHITECTURES, module="transformer", kind="sequence", epochs=24
    ),
    Model(name="gru", folder=ARCHITECTURES, module="gru", kind="sequence", epochs=24),
    Model(name="digits", folder="examples/digits", module="app", kind="cnn", epochs=12, rate=3e-3),
    Model(
        name="fashion",
        folder="examples/fashion",
        module="fashion.export",
        kind="cnn",
        epochs=2,
        needs_data=True,
    ),
    Model(
        name="spoken-digits",
        folder="examples/spoken-digits",
        module="app",
        kind="cnn",
        epochs=12,
        rate=2e-3,
        needs_data=True,
    ),
)
