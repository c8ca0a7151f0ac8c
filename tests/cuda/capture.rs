//! What another trainer captures in a CUDA graph: the families the project is named for, launched twice, the second time
//! while the stub refuses whatever a stream under capture refuses. They wait for nothing, take memory from the pool alone
//! and copy nothing from the host.

use super::{BLAS, DRIVER, in_a_process};
use gradstone::device::Device;
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::dtype::DType;
use gradstone::kernels::advantage::launch::{self as advantage, DeviceGroups};
use gradstone::kernels::advantage::{Estimator, Groups};
use gradstone::kernels::block_noise::Noise;
use gradstone::kernels::block_noise::launch as block_noise;
use gradstone::kernels::linear_logprob::launch as linear_logprob;
use gradstone::kernels::logprob::launch as logprob;
use gradstone::kernels::policy_loss::launch as policy_loss;
use gradstone::kernels::policy_loss::{Kl, KlEstimator, Objective};
use gradstone::kernels::token_selection::{Selection, launch as token_selection};
use std::sync::Arc;

/// Runs `work` once, so that images are loaded and products planned, and again under capture.
fn captured(what: &str, work: impl Fn() -> gradstone::Result<()>) {
    work().unwrap_or_else(|e| panic!("{what}: {e}"));
    // SAFETY: the stub that this process uses as its driver; its switch takes an int.
    let again = unsafe {
        let stub = libloading::Library::new("libcuda.so.1").unwrap();
        let switch = stub.get::<unsafe extern "C" fn(i32)>(b"stub_capture").unwrap();
        switch(1);
        let again = work();
        switch(0);
        again
    };
    again.unwrap_or_else(|e| panic!("{what}, captured: {e}"));
}

fn gpu() -> Arc<Gpu> {
    Arc::clone(Device::cuda(0).unwrap().gpu().unwrap())
}

fn new(gpu: &Arc<Gpu>, dtype: DType, len: usize) -> DeviceBuffer {
    DeviceBuffer::zeros(gpu, dtype, len).unwrap()
}

#[test]
fn waits_and_uploads_are_refused_under_capture() {
    let name = "capture::waits_and_uploads_are_refused_under_capture";
    in_a_process(name, &[DRIVER], &[], || {
        let gpu = gpu();
        let buffer = new(&gpu, DType::F32, 4);
        type Work<'a> = &'a dyn Fn() -> gradstone::Result<()>;
        let refused: [(&str, Work<'_>); 3] = [
            ("a wait", &|| gpu.wait()),
            ("an upload", &|| DeviceBuffer::upload(&gpu, DType::U8, &[1, 2]).map(|_| ())),
            ("a look", &|| buffer.download(0..1, &mut [0; 4])),
        ];
        for (what, work) in refused {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                captured(what, work);
            }));
            let said = outcome.unwrap_err().downcast::<String>().unwrap();
            assert!(said.contains("captured") && said.contains("900"), "{said}");
        }
    });
}

#[test]
fn logprob_and_linear_logprob() {
    in_a_process("capture::logprob_and_linear_logprob", &[DRIVER, BLAS], &[], || {
        let gpu = gpu();
        // Few rows of many units: a workspace, two launches. And rows of one unit.
        for (rows, vocab) in [(3, 20_000), (40, 70)] {
            let mut logits = new(&gpu, DType::Bf16, rows * vocab);
            let targets = new(&gpu, DType::I32, rows);
            let [mut a, mut b, mut c] = [(); 3].map(|()| new(&gpu, DType::F32, rows));
            let upstream = new(&gpu, DType::F32, rows);
            let softmax = logprob::Softmax::default();
            let asked =
                logprob::Rows { targets: targets.whole(), row_of: None, rows, vocab, softmax };
            let up = logprob::Upstream {
                dlogprob: Some(upstream.whole()),
                dentropy: Some(upstream.whole()),
            };
            // What is written is the stub's: nothing looks at it.
            let cells = std::cell::RefCell::new((&mut logits, &mut a, &mut b, &mut c));
            captured("logprob", || {
                let mut cells = cells.borrow_mut();
                let (logits, a, b, c) = &mut *cells;
                let mut out = logprob::Outputs {
                    logprob: a.whole_mut(),
                    entropy: Some(b.whole_mut()),
                    logsumexp: c.whole_mut(),
                    argmax: None,
                };
                logprob::forward(logits.whole(), &asked, out.reborrow())?;
                let entropy = out.entropy.as_ref().map(|x| x.as_slice());
                let saved = out.logsumexp.as_slice();
                let place = logprob::Logits::InPlace(logits.whole_mut());
                logprob::backward(place, &asked, saved, entropy, up)?;
                let place = logprob::Logits::InPlace(logits.whole_mut());
                logprob::forward_backward(place, &asked, out, up)
            });
        }
        for dtype in [DType::F32, DType::Bf16] {
            let (rows, width, vocab) = (21, 16, 64);
            let (hidden, weight) =
                (new(&gpu, dtype, rows * width), new(&gpu, dtype, vocab * width));
            let targets = new(&gpu, DType::I32, rows);
            let upstream = new(&gpu, DType::F32, rows);
            captured("linear_logprob", || {
                let head = linear_logprob::Head {
                    hidden: hidden.whole(),
                    weight: weight.whole(),
                    bias: None,
                    targets: targets.whole(),
                    rows,
                    width,
                    vocab,
                    softmax: logprob::Softmax::default(),
                    live: None,
                    workspace: 1,
                };
                let [mut a, mut b] =
                    [(); 2].map(|()| DeviceBuffer::recycled(&gpu, DType::F32, rows).unwrap());
                let [mut dx, mut dw] =
                    [rows * width, vocab * width].map(|len| new(&gpu, DType::F32, len));
                let up = logprob::Upstream { dlogprob: Some(upstream.whole()), dentropy: None };
                let out = logprob::Outputs {
                    logprob: a.whole_mut(),
                    entropy: None,
                    logsumexp: b.whole_mut(),
                    argmax: None,
                };
                let into = linear_logprob::Gradients {
                    dhidden: Some(dx.whole_mut()),
                    dweight: Some(dw.whole_mut()),
                    dbias: None,
                };
                linear_logprob::forward_backward(&head, up, out, into)
            });
        }
    });
}

#[test]
fn advantage_loss_noise_and_selection() {
    in_a_process("capture::advantage_loss_noise_and_selection", &[DRIVER], &[], || {
        let gpu = gpu();
        let (sequences, tokens) = (6, 48);
        let floats = |len| new(&gpu, DType::F32, len);
        let rewards = floats(sequences);
        let groups = DeviceGroups::upload(&gpu, Groups::Offsets(&[0, 4, 6]), sequences).unwrap();
        let estimators =
            ["grpo", "batch_std", "dr_grpo"].map(|name| Estimator::preset(name).unwrap());
        for estimator in &estimators {
            captured("advantage", || {
                let mut to = DeviceBuffer::recycled(&gpu, DType::F32, sequences)?;
                let out = advantage::Outputs {
                    advantage: to.whole_mut(),
                    mean: None,
                    std: None,
                    flags: None,
                    counts: None,
                };
                advantage::forward(estimator, rewards.whole(), &groups, out)
            });
        }
        let (logprob, per_sequence) = (floats(tokens), floats(sequences));
        let (mask, offsets) = (new(&gpu, DType::U8, tokens), new(&gpu, DType::I64, sequences + 1));
        let objective =
            Objective { kl: Some(Kl::new(KlEstimator::K3, 0.1)), ..Objective::default() };
        captured("policy_loss", || {
            let [mut dlogprob, mut dentropy] =
                [(); 2].map(|()| DeviceBuffer::recycled(&gpu, DType::F32, tokens).unwrap());
            let inputs = policy_loss::Inputs {
                reference_logprob: Some(logprob.whole()),
                entropy: Some(logprob.whole()),
                ..policy_loss::Inputs::new(
                    logprob.whole(),
                    logprob.whole(),
                    policy_loss::Advantages::PerSequence(per_sequence.whole()),
                    mask.whole(),
                    offsets.whole(),
                )
            };
            let gradients = policy_loss::Gradients {
                logprob: dlogprob.whole_mut(),
                entropy: Some(dentropy.whole_mut()),
            };
            policy_loss::forward_backward(&objective, &inputs, gradients).map(|_| ())
        });
        let ids = new(&gpu, DType::I32, tokens);
        let numbers = new(&gpu, DType::I64, sequences);
        captured("block_noise", || {
            let [mut weight, mut rate] = [tokens, tokens / 4]
                .map(|len| DeviceBuffer::recycled(&gpu, DType::F32, len).unwrap());
            let mut noised = DeviceBuffer::recycled(&gpu, DType::I32, tokens)?;
            let mut masked = DeviceBuffer::recycled(&gpu, DType::U8, tokens)?;
            let args = block_noise::Forward {
                ids: ids.whole(),
                eligible: None,
                sequences: numbers.whole(),
                length: tokens / sequences,
                given: None,
                noised: noised.whole_mut(),
                mask: masked.whole_mut(),
                weight: weight.whole_mut(),
                rate: rate.whole_mut(),
            };
            block_noise::forward(&Noise::clipped(4, 9, 10, 1), args)
        });
        captured("token_selection", || {
            let mut selected = DeviceBuffer::recycled(&gpu, DType::U8, tokens)?;
            let inputs = token_selection::Inputs {
                logprob: None,
                old_logprob: None,
                advantage: None,
                entropy: Some(logprob.whole()),
                mask: mask.whole(),
                clip: (0.8, 1.2),
                draw: (1, 2),
            };
            let selection = Selection::TopEntropy { fraction: 0.2 };
            token_selection::select(&selection, &inputs, selected.whole_mut()).map(|_| ())
        });
    });
}
