"""Writes losses.json: random log-probs, and the losses and gradients that TRL's own functions compute from them.

    pip install torch==2.15.0 transformers==5.23.0 trl==1.16.0
    python tests/preference-data/make.py

Of each trainer only the function of the loss runs, on a model that gives the log-probs and nothing else. What is written: the log-probs of
every token under policy and reference, the loss, and its gradient by the policy's log-probs.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

PAIRS, LONGEST = 4, 6
LENGTHS = [[3, 6, 1, 4], [5, 2, 4, 4]]
DPO = {
    "beta": 0.3,
    "loss_type": ["sigmoid"],
    "loss_weights": [],
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "ld_alpha": 1.0,
    "discopop_tau": 0.5,
    "use_weighting": False,
}
CPO = {"beta": 0.7, "loss_type": "sigmoid", "label_smoothing": 0.0, "cpo_alpha": 1.0, "simpo_gamma": 0.5, "alpha": 0.0}
KTO = {"beta": 0.4, "loss_type": "kto", "desirable_weight": 1.0, "undesirable_weight": 1.0}


class Accelerator:
    device = torch.device("cpu")

    def gather(self, value):
        return value

    def gather_for_metrics(self, value):
        return value


def drawn(generator):
    """Token log-probs of chosen and rejected completions, padded: [2 * PAIRS, LONGEST], and which are there."""
    logprobs = -3 * torch.rand(2 * PAIRS, LONGEST, generator=generator, dtype=torch.float64)
    lengths = torch.tensor(LENGTHS[0] + LENGTHS[1])
    there = torch.arange(LONGEST)[None, :] < lengths[:, None]
    return logprobs * there, there


def listed(values, there):
    return [row[mask].tolist() for row, mask in zip(values.detach().double(), there)]


def padded(there):
    """Masks of whole sequences: a prompt of one token before each completion."""
    return torch.cat([torch.zeros(len(there), 1, dtype=torch.long), there.long()], dim=1)


def model_of(logprobs, more):
    fixed = SimpleNamespace(log_probs=logprobs, entropy=torch.zeros_like(logprobs), mean_logits=torch.zeros_like(logprobs),
                            is_top1=torch.zeros(logprobs.shape, dtype=torch.bool), **more)
    return lambda **_: fixed


def dpo(settings, generator):
    dtype = torch.float32 if settings["f_divergence_type"] == "alpha_divergence" else torch.float64
    (policy, there), (reference, _), (square, _) = drawn(generator), drawn(generator), drawn(generator)
    policy = policy.to(dtype).requires_grad_()
    reference, square = reference.to(dtype), square.to(dtype) / 2
    names = ["beta", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef", "use_weighting"]
    mask = padded(there)
    trainer = SimpleNamespace(
        **{name: settings[name] for name in names},
        ld_alpha=None if settings["ld_alpha"] == 1.0 else settings["ld_alpha"],
        loss_types=settings["loss_type"],
        loss_weights=settings["loss_weights"] or [1.0] * len(settings["loss_type"]),
        args=SimpleNamespace(discopop_tau=settings["discopop_tau"]),
        model=SimpleNamespace(training=False),
        accelerator=Accelerator(),
        precompute_ref_logps=False,
        ref_model=model_of(reference, {}),
        aux_loss_enabled=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    import trl.trainer.dpo_trainer as module

    module.is_peft_model = lambda _: False
    module.disable_gradient_checkpointing = lambda *_: torch.no_grad()
    trainer.args.gradient_checkpointing_kwargs = None
    inputs = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    loss = DPOTrainer._compute_loss(trainer, model_of(policy, {"log_sum_sq_probs": square}), inputs, False)
    loss.backward()
    return {
        "policy": listed(policy, there),
        "reference": listed(reference, there),
        "log_sum_squares": listed(square, there),
        "loss": loss.item(),
        "gradient": listed(policy.grad, there),
        "reward_chosen": trainer._metrics["eval"]["rewards/chosen"][0],
        "reward_rejected": trainer._metrics["eval"]["rewards/rejected"][0],
    }


def kto(settings, generator):
    (policy, there), (reference, _) = drawn(generator), drawn(generator)
    (other, _), (other_reference, _) = drawn(generator), drawn(generator)
    policy.requires_grad_()
    label = torch.tensor([True] * PAIRS + [False] * PAIRS)
    mask = padded(there)
    shifted = torch.ones_like(mask)
    trainer = SimpleNamespace(
        **settings,
        calculate_KL=settings["loss_type"] == "kto",
        model=SimpleNamespace(training=False),
        accelerator=Accelerator(),
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    trainer._compute_kl_logps = lambda model, batch: other.sum(-1) if trainer.calculate_KL else None
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": shifted,
        "completion_mask": mask,
        "label": label,
        "ref_logps": reference.sum(-1),
        "ref_KL_logps": other_reference.sum(-1),
    }
    loss = KTOTrainer._compute_loss(trainer, model_of(policy, {}), inputs, False)
    loss.backward()
    return {
        "policy": listed(policy, there),
        "reference": listed(reference, there),
        "label": label.tolist(),
        "mismatched": (other.sum(-1) - other_reference.sum(-1)).tolist(),
        "loss": loss.item(),
        "gradient": listed(policy.grad, there),
    }


def without_reference(generator, loss_of):
    policy, there = drawn(generator)
    policy.requires_grad_()
    sums, lengths = policy.sum(-1), there.sum(-1)
    nll = -policy[:PAIRS][there[:PAIRS]].mean()
    loss, chosen, rejected = loss_of(sums, sums / lengths, nll)
    loss.backward()
    return {
        "policy": listed(policy, there),
        "loss": loss.item(),
        "gradient": listed(policy.grad, there),
        "reward_chosen": chosen.mean().item(),
        "reward_rejected": rejected.mean().item(),
    }


def cpo(settings, generator):
    def loss_of(sums, means, nll):
        trainer = SimpleNamespace(**settings, accelerator=Accelerator())
        seen = means if settings["loss_type"] in ["ipo", "simpo"] else sums
        losses, chosen, rejected = CPOTrainer.cpo_loss(trainer, *seen.chunk(2))
        return losses.mean() + settings["cpo_alpha"] * nll, chosen, rejected

    return without_reference(generator, loss_of)


def orpo(settings, generator):
    def loss_of(_, means, nll):
        trainer = SimpleNamespace(**settings, accelerator=Accelerator())
        losses, chosen, rejected, _, _ = ORPOTrainer.odds_ratio_loss(trainer, *means.chunk(2))
        return nll - losses.mean(), chosen, rejected

    return without_reference(generator, loss_of)


def cases():
    smoothed = ["exo_pair", "robust", "aot", "aot_unpaired"]
    plain = ["sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"]
    for loss in plain + smoothed:
        yield "dpo", {**DPO, "loss_type": [loss], "label_smoothing": 0.1 if loss in smoothed else 0.0}
    for divergence in ["forward_kl", "js_divergence", "alpha_divergence"]:
        for loss in ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"]:
            yield "dpo", {**DPO, "loss_type": [loss], "label_smoothing": 0.1, "f_divergence_type": divergence}
    for loss in plain:
        # TRL multiplies these two in place, which autograd refuses.
        if loss not in ["hinge", "sft"]:
            yield "dpo", {**DPO, "loss_type": [loss], "use_weighting": True}
        yield "dpo", {**DPO, "loss_type": [loss], "ld_alpha": 0.4}
    yield "dpo", {**DPO, "loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
    yield "dpo", {**DPO, "loss_type": ["aot", "sft"], "ld_alpha": 0.0}
    for loss in ["kto", "apo_zero_unpaired"]:
        yield "kto", {**KTO, "loss_type": loss}
        yield "kto", {**KTO, "loss_type": loss, "desirable_weight": 1.5, "undesirable_weight": 0.25}
    for loss in ["sigmoid", "hinge", "ipo", "simpo"]:
        yield "cpo", {**CPO, "loss_type": loss}
        yield "cpo", {**CPO, "loss_type": loss, "alpha": 0.2, "cpo_alpha": 0.0, "label_smoothing": 0.1}
    yield "orpo", {"beta": 0.1}
    yield "orpo", {"beta": 2.0}


def main():
    generator = torch.Generator().manual_seed(20)
    computed = {"dpo": dpo, "kto": kto, "cpo": cpo, "orpo": orpo}
    lines = []
    for kind, settings in cases():
        lines.append(json.dumps({"kind": kind, "settings": settings, **computed[kind](settings, generator)}))
    Path(__file__).with_name("losses.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(len(lines), "cases")


if __name__ == "__main__":
    main()
