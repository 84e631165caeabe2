"""Tables of many sites: a hypernetwork against simpler methods. This plan came before the run.

    python benchmarks/sites/run.py --out docs/results/sites     # needs scikit-learn

**Question.** Regression for 60 sites with 120 rows each, and for 30 new sites from 5, 20 and 80
rows: is a hypernetwork whose last layer follows from a site's rows ahead of one ridge regression a
site, of one MLP for all sites with an embedding of the site among its inputs, and of gradient
boosting? What do its parts contribute?

**Data.** Made up: 8 features, whose means differ a little between sites. Three hidden numbers a
site change its coefficients, which have a part of their own too. *Linear*: nothing else.
*Non-linear*: also a sine whose phase, a product and a hinge whose strength, and a tanh whose
direction differ between sites. Noise is 4% to 6% of the variance. Fresh sites for every seed.

**Methods.** A *head* is Bayesian linear regression on [features of the target, raw inputs, 1] with
a normal prior of weights, which all sites share. Features, prior and noise are trained together
by the marginal likelihood of each site's rows (J. Harrison et al., "Meta-learning priors for
efficient online Bayesian regression", 2018). Then, with features fixed, the prior is fitted to all
known sites by expectation maximisation, its covariance shrunk towards its diagonal.

- hypernetwork + head: the target's first bias and last layer are generated, its other tensors
  shared (base "residual", scale 0.2, embeddings of 8 numbers); the head corrects the output. For
  a new site the prior is fitted again and the embedding is the mean of the known ones; three other
  ways are shown too;
- shared trunk + head: the same without embeddings, with a search of its own;
- hypernetwork, defaults: all of the target generated, 64 numbers a site, `fit_embeddings`;
- pooled MLP: site embedding among the inputs, fitted for new sites under a normal prior;
- ridge a site, its penalty by leave-one-out; gradient boosting a site, and pooled with the site as
  a category (for new sites fitted again with their rows).

**Search.** Four settings for each of the three MLPs and of each boosting, on a seed of its own: for
known sites by 24 validation rows of each; for what concerns new sites (strength of the prior of
embeddings, boosting) by the new sites of that seed. Early stopping by the validation rows of the
seed itself. Test rows: 200 a site, never used otherwise. The design of all this looked at seeds 0
to 3, so the run has seeds from 200 on.

**Statistics.** R² of each site, its mean over sites; mean of 5 seeds, with a 95% interval of
Student's t over seeds; differences are paired by seed. The claims are the differences of
"hypernetwork + head" to ridge, pooled MLP and both boostings: 4 settings × 2 kinds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from models import (
    FEATURES,
    KNOWN,
    NEW,
    ROWS,
    TEST,
    TRAIN,
    Pooled,
    Rows,
    WithHead,
    first,
    fitted,
    make_sites,
    r2,
    train,
)  # fmt: skip
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.nn import functional as F

from sparsehyper import HyperNetwork, Sparse, TaskEmbedding
from sparsehyper.adaptation import fit_embeddings

SHOTS = (5, 20, 80)
WHERE = ("known", *map(str, SHOTS))
SEARCH_SEED, FIRST_SEED = 100, 200
NETWORKS = [(act, decay) for act in ("gelu", "tanh") for decay in (0.3, 1.0)]
BOOSTINGS = [(lr, leaves) for lr in (0.05, 0.15) for leaves in (4, 16)]
PRIORS = (0.05, 0.2, 1.0)
OURS = "hypernetwork + head"
WAY = "prior fitted, embedding mean"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, by number of seeds

Scores = dict[str, float]


def boosting(setting: tuple[float, int]) -> HistGradientBoostingRegressor:
    lr, leaves = setting
    return HistGradientBoostingRegressor(
        learning_rate=lr, max_leaf_nodes=leaves, max_iter=100, min_samples_leaf=5,
    )  # fmt: skip


def ridge() -> RidgeCV:
    return RidgeCV(np.logspace(-3, 3, 13))


def alone(make: object, rows: Rows, test: Tensor) -> Tensor:
    """Predictions by a model of its own for each site."""
    each = zip(rows[0].numpy(), rows[1].numpy(), test.numpy(), strict=True)
    found = [make().fit(x, y).predict(new) for x, y, new in each]
    return torch.tensor(np.stack(found), dtype=torch.float32)


def pooled_boosting(setting: tuple[float, int], parts: list[Rows], tests: list[Tensor]) -> list:
    """Predictions for groups of sites by one model, with the site as a category."""

    def table(xs: list[Tensor]) -> np.ndarray:
        counts = [n for x in xs for n in [x.shape[1]] * len(x)]
        flat = torch.cat([x.flatten(0, 1) for x in xs]).numpy()
        return np.column_stack([flat, np.repeat(np.arange(len(counts)), counts)])

    model = boosting(setting).set_params(categorical_features=[FEATURES], max_iter=300)
    model.fit(table([x for x, _ in parts]), torch.cat([y.flatten() for _, y in parts]).numpy())
    found = torch.tensor(model.predict(table(tests)), dtype=torch.float32)
    sizes = [x.shape[0] * x.shape[1] for x in tests]
    return [p.view(x.shape[:2]) for p, x in zip(found.split(sizes), tests, strict=True)]


def scores_of_new(predict, new: Rows) -> Scores:
    """R² of new sites by number of rows; ``predict`` maps rows and test inputs to predictions."""
    x, y = new[0][:, -TEST:], new[1][:, -TEST:]
    return {str(n): r2(predict(first(new, n), x), y) for n in SHOTS}


def scores_of_boosting(kind: str, seed: int, setting: dict) -> dict[str, Scores]:
    known, new = make_sites(kind, seed)
    rows, x, y = first(known, ROWS), known[0][:, -TEST:], known[1][:, -TEST:]
    own = {"known": r2(alone(lambda: boosting(setting["known"]), rows, x), y)}
    own |= scores_of_new(lambda some, t: alone(lambda: boosting(setting["new"]), some, t), new)
    (predicted,) = pooled_boosting(setting["pooled known"], [rows], [x])
    pooled = {"known": r2(predicted, y)} | scores_of_new(
        lambda some, t: pooled_boosting(setting["pooled new"], [rows, some], [x, t])[1], new
    )
    return {"boosting a site": own, "boosting, pooled": pooled}


@torch.no_grad()
def scores_of_known(model: WithHead | Pooled, known: Rows) -> Scores:
    rows, x, y = first(known, ROWS), known[0][:, -TEST:], known[1][:, -TEST:]
    return {"known": r2(model.predict(rows, x, model.z), y)}


def scores_with_head(model: WithHead, known: Rows, new: Rows) -> dict[str, Scores]:
    """By the way to a new site: prior as trained or fitted again, embedding mean or fitted."""
    own = scores_of_known(model, known)  # with the prior as trained
    mean, found = model.hnet.normalise(model.z).mean(0).expand(NEW, -1), {}
    for prior in ("trained", "fitted"):
        if prior == "fitted":
            model.refit(first(known, ROWS))
        ways = {
            "mean": lambda s, t: model.predict(s, t, mean),
            "fitted": lambda s, t: model.predict(s, t, fitted(model, s, 1.0)),
        }
        for z, way in ways.items():
            found[f"prior {prior}, embedding {z}"] = own | scores_of_new(way, new)
    return found


def scores_pooled(model: Pooled, known: Rows, new: Rows, prior: float) -> Scores:
    by = scores_of_new(lambda s, t: model.predict(s, t, fitted(model, s, prior)), new)
    return scores_of_known(model, known) | by


def scores_of_defaults(kind: str, seed: int) -> Scores:
    """The library's defaults: everything generated, embeddings of new sites by L-BFGS."""
    known, new = make_sites(kind, seed)
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
    )
    hnet = HyperNetwork(module, Sparse(), TaskEmbedding(KNOWN, dim=64, seed=seed), seed=seed)
    optimizer = torch.optim.Adam(hnet.parameters(), lr=1e-3)
    (x, y), ids = first(known, ROWS), torch.arange(KNOWN)
    for _ in range(600):
        loss = F.mse_loss(hnet(x.flatten(0, 1), task=ids.repeat_interleave(ROWS))[:, 0], y.ravel())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def predict(test: Tensor, tasks: list) -> Tensor:
        with torch.no_grad():
            return torch.stack([hnet(t, task=k)[:, 0] for t, k in zip(test, tasks, strict=True)])

    def fit(some: Rows, test: Tensor) -> Tensor:
        names = [f"{some[1].shape[1]}-{i}" for i in range(NEW)]
        tasks = {name: (a, b) for name, a, b in zip(names, *some, strict=True)}
        fit_embeddings(hnet, tasks, loss=lambda out, y: (out[:, 0] - y).square())
        return predict(test, names)

    hnet.eval()
    own = {"known": r2(predict(known[0][:, -TEST:], range(KNOWN)), known[1][:, -TEST:])}
    return own | scores_of_new(fit, new)


def search(kind: str) -> dict:
    """Settings of each method, found on a seed of its own."""
    known, new = make_sites(kind, SEARCH_SEED)
    fit, (x, y) = first(known, TRAIN), (known[0][:, TRAIN:ROWS], known[1][:, TRAIN:ROWS])

    def lowest(errors: dict) -> object:
        return min(errors, key=errors.__getitem__)

    def of_new(predict) -> float:
        return -sum(scores_of_new(predict, new).values())

    head = {s: train(WithHead(s, SEARCH_SEED), known, SEARCH_SEED) for s in NETWORKS}
    best_head = lowest({s: error for s, (_, error) in head.items()})
    trunk = {
        s: train(WithHead(s, SEARCH_SEED, embedded=False), known, SEARCH_SEED) for s in NETWORKS
    }
    pooled = {s: train(Pooled(s, SEARCH_SEED), known, SEARCH_SEED) for s in NETWORKS}
    best = lowest({s: error for s, (_, error) in pooled.items()})
    model = pooled[best][0]
    priors = {p: of_new(lambda s, t, p=p: model.predict(s, t, fitted(model, s, p))) for p in PRIORS}
    makers = {s: (lambda s=s: boosting(s)) for s in BOOSTINGS}
    part = (new[0][:10], new[1][:10])
    x_part = part[0][:, -TEST:]
    return {
        "head": best_head,
        "trunk": lowest({s: error for s, (_, error) in trunk.items()}),
        "pooled": best,
        "prior": lowest(priors),
        "boosting": {
            "known": lowest({s: -r2(alone(m, fit, x), y) for s, m in makers.items()}),
            "new": lowest({
                s: -sum(r2(alone(m, first(part, n), x_part), part[1][:, -TEST:]) for n in SHOTS)
                for s, m in makers.items()
            }),
            "pooled known": lowest(
                {s: -r2(pooled_boosting(s, [fit], [x])[0], y) for s in BOOSTINGS}
            ),
            "pooled new": lowest({
                s: of_new(lambda some, t, s=s: pooled_boosting(s, [fit, some], [x, t])[1])
                for s in BOOSTINGS
            }),
        },
    }  # fmt: skip


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95% interval."""
    half = T_95.get(len(values), np.nan) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def page(results: dict) -> str:
    lines = ["# Tables of many sites\n", "Plan, methods and data: `benchmarks/sites/run.py`.\n"]
    for kind, part in results["kinds"].items():
        lines += [f"## {kind}\n", f"R², {results['seeds']} seeds. Settings: `{part['settings']}`\n"]
        lines += [
            "| method | known sites | new, 5 rows | 20 rows | 80 rows |",
            "|---|" + "---:|" * 4,
        ]
        for name, by in part["scores"].items():
            cells = ["{:.3f} ± {:.3f}".format(*interval(by[w])) for w in WHERE]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines += [f"\n{OURS} − each, paired by seed:\n"]
        lines += ["| − | known sites | new, 5 rows | 20 rows | 80 rows |", "|---|" + "---:|" * 4]
        ours = part["scores"][OURS]
        for name, by in part["scores"].items():
            gaps = [interval([a - b for a, b in zip(ours[w], by[w], strict=True)]) for w in WHERE]
            cells = ["{:+.3f} ± {:.3f}".format(*gap) for gap in gaps]
            if name != OURS:
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines) + f"\n{results['seconds'] / 60:.0f} minutes.\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kind", action="append", choices=("linear", "nonlinear"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True)
    started = time.time()
    results = {"seeds": options.seeds, "kinds": {}}
    for kind in options.kind or ("linear", "nonlinear"):
        settings = search(kind)
        print(kind, settings, f"{time.time() - started:.0f} s", flush=True)
        scores: dict[str, dict[str, list[float]]] = {}
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
            known, new = make_sites(kind, seed)
            rows, x, y = first(known, ROWS), known[0][:, -TEST:], known[1][:, -TEST:]
            own = {"known": r2(alone(ridge, rows, x), y)}
            setting = settings["head"]
            model, _ = train(WithHead(setting, seed), known, seed)
            ways = scores_with_head(model, known, new)
            found = {OURS: ways.pop(WAY)} | ways
            model, _ = train(WithHead(settings["trunk"], seed, embedded=False), known, seed)
            found["shared trunk + head"] = scores_with_head(model, known, new)[WAY]
            model, _ = train(Pooled(settings["pooled"], seed), known, seed)
            found |= {
                "pooled MLP": scores_pooled(model, known, new, settings["prior"]),
                "ridge a site": own | scores_of_new(lambda s, t: alone(ridge, s, t), new),
                **scores_of_boosting(kind, seed, settings["boosting"]),
                "hypernetwork, defaults": scores_of_defaults(kind, seed),
            }
            for name, by in found.items():
                for where, value in by.items():
                    scores.setdefault(name, {}).setdefault(where, []).append(value)
            print(kind, seed, json.dumps(found), f"{time.time() - started:.0f} s", flush=True)
        results["kinds"][kind] = {"settings": settings, "scores": scores}
    results["seconds"] = time.time() - started
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "results.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
