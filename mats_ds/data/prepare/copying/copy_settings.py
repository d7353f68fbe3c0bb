"""Settings of training copies: size, distance of keyframes, codec, quality; and the options of the
encoder that follow."""

from __future__ import annotations

from dataclasses import dataclass

ENCODERS = {"h264": "libx264", "vp9": "libvpx-vp9"}
PRESETS = {  # x264's by name; of libvpx the number cpu-used
    "h264": ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"),
    "vp9": tuple("012345678"),
}
DEFAULT_CRF = {"h264": 23, "vp9": 32}
MAX_CRF = {"h264": 51, "vp9": 63}
MIN_SIDE, MAX_SIDE, MAX_GOP = 16, 4320, 600


@dataclass(frozen=True)
class CopySettings:
    """Encoding of training copies. crf None: 23 for H.264, 32 for VP9. fast_decode: H.264 without
    CABAC and loop filter.

    Raises ValueError for what no encoder could do.
    """

    short_side: int = 256
    gop: int = 16
    codec: str = "h264"
    crf: int | None = None
    preset: str | None = None
    fast_decode: bool = True

    def __post_init__(self) -> None:
        if self.codec not in ENCODERS:
            raise ValueError(f"codec is one of {', '.join(ENCODERS)}, got {self.codec!r}")
        if not MIN_SIDE <= self.short_side <= MAX_SIDE or self.short_side % 2:
            raise ValueError(f"--short_side is an even number from {MIN_SIDE} to {MAX_SIDE}, got {self.short_side}")
        if not 1 <= self.gop <= MAX_GOP:
            raise ValueError(f"gop is 1 to {MAX_GOP} frames (12 or 16 for training), got {self.gop}")
        if self.crf is not None and not 0 <= self.crf <= MAX_CRF[self.codec]:
            raise ValueError(f"crf of {self.codec} is 0 (best) to {MAX_CRF[self.codec]} (smallest), got {self.crf}")
        if self.preset is not None and self.preset not in PRESETS[self.codec]:
            raise ValueError(f"preset of {self.codec} is one of {', '.join(PRESETS[self.codec])}, got {self.preset!r}")

    @property
    def used_crf(self) -> int:
        return DEFAULT_CRF[self.codec] if self.crf is None else self.crf

    def encoder_options(self) -> dict[str, str]:
        """Options of libx264 or libvpx."""
        if self.codec == "vp9":
            # No frames that are never shown: every packet is one picture, so that any decoder
            # numbers them alike.
            quiet = {"lag-in-frames": "0", "auto-alt-ref": "0"}
            return {"crf": str(self.used_crf), "b:v": "0", "deadline": "good", "cpu-used": self.preset or "5", **quiet}
        options = {
            "crf": str(self.used_crf),
            "preset": self.preset or "fast",
            # B-frames that nothing refers to are skipped by the reader where they are not wanted.
            "x264-params": f"open-gop=0:b-pyramid=none:b-adapt=0:bframes=4:ref=1:psy=0:keyint={self.gop}",
        }
        return options | ({"tune": "fastdecode"} if self.fast_decode else {})
