//! Differentiable functions on tensors.
//!
//! Each is thin: check, call [`kernels`](crate::kernels), record the backward. A gradient is always f32; an output
//! has the storage type of its first input. No loop over elements lives here.

mod activation;
mod attention;
mod block_noise;
mod elementwise;
mod gradient;
mod linear_logprob;
mod linear_policy_loss;
mod logprob;
mod matmul;
mod norm;
mod policy_loss;
mod reduce;
mod rows;
mod softmax;
mod tokens;
mod vq;

pub use activation::{gelu, gelu_tanh, gelu_tanh_mul, silu, silu_mul};
pub use attention::{append_to_cache, attention, cached_attention};
pub use block_noise::{Noised, block_noise};
pub use elementwise::{add, cast, div, exp, log, mul, neg, scale, shift, softcap, sqrt, sub, tanh};
pub use linear_logprob::linear_logprob;
pub use linear_policy_loss::linear_policy_loss;
pub use logprob::{SoftmaxOptions, logprob};
pub(crate) use matmul::product;
pub use matmul::{linear, linears, logits, matmul};
pub use norm::{layer_norm, rms_norm};
pub use policy_loss::{Advantages, PolicyColumns, PolicyLoss, PolicyMetrics, policy_loss};
pub use reduce::{mean, mean_last, sum, sum_last};
pub use rows::{concat, gather, reshape, rows, split};
pub use softmax::{log_softmax, softmax};
pub use tokens::{embedding, rope, rope_with};
pub use vq::{vq_lookup, vq_quantize};
