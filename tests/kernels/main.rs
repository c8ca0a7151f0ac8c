//! Every kernel, on what runs it: the host engine on a machine without a GPU, or the GPU that `GRADSTONE_TEST_DEVICE` names.
//!
//! One module a family: the kernel against its CPU twin and f64, in every order of threads, its edges and bad input.
//! `kernels/host/sanitize` runs all of it with instrumented kernels. The operations above are in `tests/ops.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../closed_policy/mod.rs"]
mod closed_policy;
#[path = "../devices/mod.rs"]
mod devices;
#[path = "../softmax_oracle/mod.rs"]
mod softmax_oracle;

mod adamw;
mod advantage;
mod advantage_tokens;
mod advantage_whole_field;
mod attention;
mod block_noise;
mod decoder;
mod device_memory;
mod elementwise;
mod far;
mod host_waits;
mod learner;
mod linear_logprob;
mod linear_policy_loss;
mod logprob;
mod logprob_ops;
mod memory;
mod model_kernels;
mod policy_loss;
mod rollout_correction;
mod rows;
mod sample;
mod step_credit;
mod token_decode;
mod token_selection;
