//! The table of kernel families: what `gradstone list kernels` shows, and what benchmarks and coverage tests compare
//! themselves with.

/// A kernel family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// The module under [`kernels`](crate::kernels), and its name in `gradstone bench`.
    pub name: &'static str,
    /// What it computes, in a line for a list.
    pub summary: &'static str,
    /// The files under `kernels/` that hold its CUDA kernels.
    pub sources: &'static [&'static str],
}

const fn family(
    name: &'static str,
    sources: &'static [&'static str],
    summary: &'static str,
) -> Family {
    Family { name, summary, sources }
}

/// Every family, those that the project is named for first.
#[rustfmt::skip]
pub const FAMILIES: [Family; 22] = [
    family("logprob", &["logprob.cu"],
        "logits to log-prob, entropy, logsumexp and argmax in one read; backward in place"),
    family("linear_logprob", &["linear_logprob.cu", "logprob.cu"],
        "the outputs of logprob from hidden states and lm_head, without the matrix of logits"),
    family("policy_loss", &["policy_loss.cu"],
        "loss, gradients and metrics of an objective in one pass over packed sequences"),
    family("linear_policy_loss", &["linear_logprob.cu", "policy_loss.cu"],
        "a policy loss straight from hidden states and lm_head, with the gradients of both"),
    family("advantage", &["advantage.cu", "advantage_tokens.cu"],
        "estimators of outcomes in groups and of tokens, several rewards, whitening"),
    family("step_credit", &["step_credit.cu"],
        "verdicts about steps painted on tokens: modulation, masks, step advantages"),
    family("rollout_correction", &["rollout_correction.cu"],
        "weights and rejections between sampler and policy, with diagnostics"),
    family("token_selection", &["token_selection.cu"],
        "tokens that an objective treats apart: Clip-Cov, KL-Cov, the top entropies"),
    family("sample", &["sample.cu"],
        "temperature, top-k, top-p with Philox keyed by sequence and position"),
    family("rms_norm", &["rms_norm.cu"],
        "rows divided by their root mean square and scaled by a weight"),
    family("layer_norm", &["layer_norm.cu"],
        "rows centred, divided by their deviation, scaled and shifted"),
    family("rope", &["rope.cu"],
        "rotary positions, forward and backward"),
    family("attention", &["attention_forward.cu", "attention_backward.cu", "attention_cache.cu"],
        "grouped-query attention over packed sequences or a KV cache, under a mask that is described and not stored"),
    family("activation", &["activation.cu"],
        "SiLU and GELU, alone and as the gate of a product"),
    family("softmax", &["softmax.cu"],
        "softmax and log-softmax over rows of any length"),
    family("rows", &["rows.cu"],
        "rows of a table by index, and the gradient that adds into them"),
    family("cast", &["cast.cu"],
        "floats of one storage type as another"),
    family("reduce", &["reduce.cu"],
        "sums over rows and over columns, in a fixed order"),
    family("elementwise", &["elementwise.cu"],
        "arithmetic on one element at a time"),
    family("block_noise", &["block_noise.cu"],
        "masks of block diffusion and the weight of each masked token: clipped, forced, counted, stratified"),
    family("token_decode", &["token_decode.cu"],
        "text ids to bytes with the position of every token; image ids to codebook vectors, and back"),
    family("adamw", &["adamw.cu"],
        "fused AdamW with f32 master weights; global gradient norm"),
];
