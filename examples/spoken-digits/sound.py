"""Recordings as pictures: log-mel spectrograms in NumPy."""

import numpy as np

RATE = 8000
WINDOW = 256  # samples, 32 ms
HOP = 100  # samples, 12.5 ms
BANDS = 32
FRAMES = 64  # 0.8 s; nine in ten recordings are shorter
FLOOR = 1e-4


def mel_filters() -> np.ndarray:
    """Return triangular filters (bands x frequencies), evenly spaced as we hear them."""

    def mel(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    edges = 700 * (10 ** (np.linspace(mel(60), mel(RATE / 2), BANDS + 2) / 2595) - 1)
    bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


FILTERS = mel_filters()
HANN = np.hanning(WINDOW).astype(np.float32)


def picture(samples: np.ndarray) -> np.ndarray:
    """Return a recording's log-mel spectrogram, bands x frames, zero where it has ended.

    Each band's mean over the recording is taken away: most of what differs between microphones
    and voices, and nothing of what differs between digits.
    """
    length = WINDOW + HOP * (FRAMES - 1)
    heard = max(4, min(FRAMES, (len(samples) - WINDOW) // HOP + 1))
    samples = samples[:length]
    padded = np.pad(samples, (0, length - len(samples)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * HANN
    power = (np.abs(np.fft.rfft(windows, axis=1)) ** 2).astype(np.float32)
    loud = np.log(power @ FILTERS.T + FLOOR).T
    mean, spread = loud[:, :heard].mean(axis=1, keepdims=True), loud[:, :heard].std()
    made = (loud - mean) / (spread + 1e-5)
    made[:, heard:] = 0
    return made.astype(np.float32)
