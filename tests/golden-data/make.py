"""Writes the cases of this folder: tiny random decoders and what transformers computes with them, in float64.

    pip install torch==2.15.0 transformers==5.23.0
    python tests/golden-data/make.py [NAME ...]

Each case is a folder with `config.json` and `model.safetensors` as published models have them, and `case.safetensors` with inputs,
outputs and metadata that `tests/golden/case.rs` reads. Greedy ids are checked to be far from a tie.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent
BATCH, LENGTH, PROMPT, NEW = 2, 17, 6, 16
COMMON = {
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "use_cache": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "vocab_size": 89,
}
V4, V5 = "4.x", "5.x (rope_parameters)"
CASES = {
    "mistral_window": (
        V4,
        "right",
        {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": 5,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        },
    ),
    "mistral_yarn_headdim": (
        V5,
        "left",
        {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "hidden_size": 40,
            "intermediate_size": 48,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "sliding_window": None,
            "tie_word_embeddings": True,
            "dtype": "float32",
        },
    ),
    # No rms_norm_eps: OLMo 2 has a default of its own.
    "olmo2_untied": (
        V4,
        "right",
        {
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_key_value_heads": 4,
            "attention_bias": False,
            "rope_theta": 500000.0,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        },
    ),
    "olmo2_tied_bias_gqa": (
        V5,
        "left",
        {
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_key_value_heads": 2,
            "attention_bias": True,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            "tie_word_embeddings": True,
            "dtype": "float32",
        },
    ),
    "qwen3_window_from_layer_1": (
        V4,
        "right",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "attention_bias": False,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
        },
    ),
    # Layers 3 and 6 of full attention, with a base of their own that is scaled.
    "gemma3_text": (
        V4,
        "left",
        {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "num_hidden_layers": 7,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 12,
            "rms_norm_eps": 1e-6,
            "rope_theta": 50000.0,
            "rope_local_base_freq": 5000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window": 5,
            "sliding_window_pattern": 3,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
        },
    ),
    "gemma3_text_v5": (
        V5,
        "right",
        {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 8,
            "rms_norm_eps": 1e-6,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 90000.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
            },
            "sliding_window": 4,
            "final_logit_softcapping": 20.0,
            "tie_word_embeddings": True,
            "dtype": "float32",
        },
    ),
    "qwen3_moe": (
        V4,
        "right",
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_hidden_layers": 3,
            "hidden_size": 24,
            "intermediate_size": 40,
            "moe_intermediate_size": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [1],
            "router_aux_loss_coef": 0.001,
            "output_router_logits": False,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "attention_bias": False,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": 2,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        },
    ),
    "qwen3_moe_shares_window": (
        V5,
        "left",
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_hidden_layers": 2,
            "hidden_size": 24,
            "intermediate_size": 40,
            "moe_intermediate_size": 8,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "num_key_value_heads": 4,
            "head_dim": 6,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "use_sliding_window": True,
            "sliding_window": 6,
            "tie_word_embeddings": True,
            "dtype": "float32",
        },
    ),
    "phi3_window": (
        V4,
        "right",
        {
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "original_max_position_embeddings": 64,
            "sliding_window": 7,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        },
    ),
    # As Phi 4 mini: a part of each head is rotated, LongRoPE, tied, grouped heads.
    "phi3_longrope_partial": (
        V4,
        "left",
        {
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.75,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.2, 1.9],
                "long_factor": [1.0, 4.0, 9.0],
            },
            "original_max_position_embeddings": 48,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
        },
    ),
    "smollm3": (
        V4,
        "right",
        {
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "num_hidden_layers": 4,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_key_value_heads": 2,
            "attention_bias": False,
            "mlp_bias": False,
            "rms_norm_eps": 1e-6,
            "rope_theta": 50000.0,
            "rope_scaling": None,
            "no_rope_layer_interval": 4,
            "use_sliding_window": False,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
        },
    ),
    "smollm3_listed_bias_window": (
        V5,
        "left",
        {
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "num_hidden_layers": 3,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_key_value_heads": 4,
            "attention_bias": True,
            "mlp_bias": True,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
            "no_rope_layers": [0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 5,
            "tie_word_embeddings": False,
            "dtype": "float32",
        },
    ),
    "granite": (
        V4,
        "left",
        {
            "architectures": ["GraniteForCausalLM"],
            "model_type": "granite",
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_key_value_heads": 2,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_multiplier": 0.21,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 3.0,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
        },
    ),
    "granite_bias": (
        V5,
        "right",
        {
            "architectures": ["GraniteForCausalLM"],
            "model_type": "granite",
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_key_value_heads": 4,
            "attention_bias": True,
            "mlp_bias": True,
            "attention_multiplier": 0.5,
            "embedding_multiplier": 0.75,
            "residual_multiplier": 1.5,
            "logits_scaling": 0.5,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": False,
            "dtype": "float32",
        },
    ),
}
NOTE = (
    "Weights cast to f64. Logits and hidden states at padded positions are 0 and not compared. hidden_states is [layers+1,B,T,H], "
    "the last one after the final norm. loss = mean next-token NLL over pairs where both tokens are unmasked; grad.* are its "
    "gradients. Greedy ids start after in.prompt_ids (left padded), 16 tokens, no stop token."
)


def weights(folder, seed):
    """Random weights, loud enough that layers, heads and positions matter."""
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config)
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        noise = torch.randn(value.shape, generator=draw)
        if name.endswith("norm.weight"):
            state[name] = 1 + 0.2 * noise
        elif name.endswith("bias"):
            state[name] = 0.2 * noise
        else:
            state[name] = noise * (0.6 if "embed" in name or "lm_head" in name else 1.5 / value.shape[-1] ** 0.5)
    state = dict(pair for name, value in state.items() for pair in experts_apart(name, value))
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors", {"format": "pt"})


def experts_apart(name, value):
    """The experts' matrices as files have them, one by one, where transformers 5 holds them in one tensor."""
    if name.endswith("experts.gate_up_proj"):
        at = name.removesuffix("gate_up_proj")
        for expert, both in enumerate(value):
            yield from zip((f"{at}{expert}.gate_proj.weight", f"{at}{expert}.up_proj.weight"), both.chunk(2))
    elif name.endswith("experts.down_proj"):
        for expert, one in enumerate(value):
            yield f"{name.removesuffix('down_proj')}{expert}.down_proj.weight", one
    else:
        yield name, value


def projections_apart(name, value, config):
    """Gradients of Phi 3's joint projections, projection by projection."""
    if name.endswith("qkv_proj.weight"):
        width = config["hidden_size"] // config["num_attention_heads"]
        rows = [config["num_attention_heads"] * width, *[config["num_key_value_heads"] * width] * 2]
        parts = value.split(rows)
        yield from ((name.replace("qkv_proj", f"{which}_proj"), part) for which, part in zip("qkv", parts))
    elif name.endswith("gate_up_proj.weight"):
        parts = value.chunk(2)
        yield from ((name.replace("gate_up_proj", f"{which}_proj"), part) for which, part in zip(("gate", "up"), parts))
    else:
        yield from experts_apart(name, value)


def masks(padding):
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    prompt = torch.ones(BATCH, PROMPT, dtype=torch.int64)
    mask[1, :4 if padding == "left" else 0] = 0
    mask[1, LENGTH - (4 if padding == "right" else 0) :] = 0
    prompt[1, :2] = 0
    return mask, prompt


def case(name, style, padding, config, seed):
    folder = HERE / f"causal_lm__{name}"
    folder.mkdir(exist_ok=True)
    config = dict(sorted({**COMMON, **config}.items()))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights(folder, seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa", experts_implementation="eager")
    model.eval()
    draw = torch.Generator().manual_seed(seed + 1000)
    ids = torch.randint(0, config["vocab_size"], (BATCH, LENGTH), generator=draw)
    prompts = torch.randint(0, config["vocab_size"], (BATCH, PROMPT), generator=draw)
    mask, prompt_mask = masks(padding)
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    logprob = out.logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    both = mask[:, 1:] * mask[:, :-1]
    loss = -(logprob * both).sum() / both.sum()
    loss.backward()
    keep = mask[..., None].double()
    tensors = {
        "in.input_ids": ids,
        "in.attention_mask": mask,
        "in.position_ids": positions,
        "in.prompt_ids": prompts,
        "in.prompt_mask": prompt_mask,
        "out.hidden_states": torch.stack([(h * keep).detach() for h in out.hidden_states]).float(),
        "out.last_hidden": (out.hidden_states[-1] * keep).detach().float(),
        "out.logits": (out.logits * keep).detach().float(),
        "out.loss": loss.detach(),
    }
    for parameter, value in model.named_parameters():
        for name_there, part in projections_apart(parameter, value.grad, config):
            tensors[f"out.grad.{name_there}"] = part.float()

    # Token by token over whole sequences without a cache, the definition.
    sequence, sequence_mask, scores = prompts, prompt_mask, []
    with torch.no_grad():
        for _ in range(NEW):
            places = (sequence_mask.cumsum(1) - 1).clamp(min=0)
            step = model(input_ids=sequence, attention_mask=sequence_mask, position_ids=places).logits[:, -1]
            scores.append(step)
            sequence = torch.cat([sequence, step.argmax(-1, keepdim=True)], 1)
            sequence_mask = torch.cat([sequence_mask, torch.ones(BATCH, 1, dtype=torch.int64)], 1)
    scores = torch.stack(scores, 1)
    best = scores.topk(2, -1).values
    margin = (best[..., 0] - best[..., 1]).min().item()
    assert margin > 1e-3, f"{name}: a tie within {margin}; take another seed"
    tensors["out.greedy_ids"] = sequence[:, PROMPT:]
    tensors["out.greedy_scores"] = scores.float()

    used = {
        "architecture": config["architectures"][0],
        "attention": "sdpa",
        "compute_dtype": "f64",
        "config_style": style,
        "greedy_min_margin": margin,
        "padding": padding,
        "tied": config["tie_word_embeddings"],
    }
    source = {
        "repo": "huggingface/transformers",
        "version": transformers.__version__,
        "path": "src/transformers/models",
        "function": f"{config['architectures'][0]}.forward",
    }
    metadata = {
        "op": "causal_lm",
        "config": json.dumps(used),
        "source": json.dumps(source),
        "tolerance": json.dumps({"rtol": 1e-4, "atol": 2e-4}),
        "note": NOTE,
    }
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "case.safetensors", metadata)
    print(name, f"loss {loss.item():.4f}, margin {margin:.4f}")


for number, (name, (style, padding, config)) in enumerate(CASES.items()):
    if sys.argv[1:] and name not in sys.argv[1:]:
        continue
    case(name, style, padding, config, 10 * number + 1)
