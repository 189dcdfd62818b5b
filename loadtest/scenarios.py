"""What `python -m loadtest serve` measures: a plan, and the workloads that run at one rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loadtest.arrivals import Traffic
from loadtest.latency import Objective

ZIPF = "zipf"
COLD = "2 % cold"
BURSTS = "bursts"

SCENARIOS: dict[str, tuple[Traffic, ...]] = {
    ZIPF: (Traffic(),),
    "uniform": (Traffic(popularity="uniform"),),
    "identical": (Traffic(popularity="identical"),),
    "distinct": (Traffic(popularity="distinct"),),
    BURSTS: (Traffic(arrivals="bursts"),),
    "churn every second": (Traffic(churn_every_s=1.0, churn_share=0.25),),
    COLD: (Traffic(cold=0.02),),
    "two tenants, one bursts": (
        Traffic("steady", share=3.0),
        Traffic("bursting", share=1.0, arrivals="bursts", popularity="uniform"),
    ),
}
MEANING: dict[str, str] = {
    ZIPF: "Poisson arrivals; the adapter of rank k is asked for in proportion to 1/k.",
    "uniform": "Poisson arrivals; every adapter alike.",
    "identical": "Poisson arrivals; one adapter gets everything.",
    "distinct": "Poisson arrivals; adapters in turn, so that a batch repeats none before all are in it.",
    BURSTS: "As zipf, but requests arrive 16 at a time on average, at the same mean rate.",
    "churn every second": "As zipf; every second the most popular quarter of the adapters changes places with others.",
    COLD: "As zipf; one request in fifty asks for an adapter that is nowhere in memory and has to be read first.",
    "two tenants, one bursts": "Three quarters steady zipf, a quarter in bursts over all adapters, on connections of "
    "their own.",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    server       one that runs already, "host:port"; empty: start one on `base`
    settings     of the server that is started: "scheduler.max_batch_tokens=8192"
    rate         of the scenarios, requests a second; 0: find the highest that holds the objective and take a share
    seconds      measured altogether, besides starting up
    step_s       of one window
    rounds       of saturation, served and offline in turn
    timeout_s    of one request
    """

    base: str = "minilm"
    device: str = "auto"
    dtype: str = "float32"
    server: str = ""
    settings: tuple[str, ...] = ()
    num_adapters: int = 32
    objective: Objective = Objective(0.05)
    rate: float = 0.0
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    seconds: float = 300.0
    step_s: float = 8.0
    rounds: int = 5
    timeout_s: float = 5.0
    rpc: Literal["stream", "unary"] = "stream"
    num_generators: int = 1
    seed: int = 0

    @property
    def command(self) -> str:
        """What measures this again."""
        where = f"--server {self.server}" if self.server else f"--device {self.device} --dtype {self.dtype}"
        settings = "".join(f" --set {setting}" for setting in self.settings)
        rate = f" --rate {self.rate:g}" if self.rate else ""
        few = self.scenarios if len(self.scenarios) < len(SCENARIOS) else ()
        scenarios = "".join(f' --scenario "{name}"' for name in few)
        return (
            f"python -m loadtest serve --base {self.base} {where} --adapters {self.num_adapters}"
            f" --objective-ms {self.objective.seconds * 1000:g} --seconds {self.seconds:g} --step {self.step_s:g}"
            f" --rounds {self.rounds} --rpc {self.rpc} --generators {self.num_generators}{rate}{settings}{scenarios}"
        )
