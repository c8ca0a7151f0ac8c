//! Noise of block diffusion: against its definition written out, against the closed forms of its statistics, and the
//! promise that a sequence's noise does not depend on anything around it.
mod definition;
mod statistics;

use crate::devices;
use definition::Noised;
use gradstone::DType;
use gradstone::device::Device;
use gradstone::device::cpu::{pool, simd};
use gradstone::device::gpu::{DeviceBuffer, Gpu};
use gradstone::kernels::block_noise::{
    Draw, Forward, Given, Noise, Order, Rate, WarmUp, Weight, forward, launch,
};
use gradstone::tensor::Storage;
use gradstone::{Error, Tensor, ops};
use gradstone_host::{Order as ThreadOrder, with_order};
use proptest::prelude::*;
use std::sync::Arc;

/// A batch and what is drawn for it.
#[derive(Clone, Debug)]
pub struct Batch {
    pub noise: Noise,
    pub length: usize,
    pub sequences: Vec<u64>,
    pub ids: Vec<i32>,
    pub eligible: Option<Vec<u8>>,
    pub given: Option<[Vec<f32>; 2]>,
}

impl Batch {
    pub fn new(noise: Noise, rows: usize, length: usize) -> Batch {
        let ids = (0..rows * length).map(|i| (i % 97) as i32).collect();
        let sequences = (0..rows as u64).collect();
        Batch { noise, length, sequences, ids, eligible: None, given: None }
    }

    pub fn try_run(&self) -> Result<Noised, Error> {
        let (tokens, rows) = (self.ids.len(), self.sequences.len());
        let blocks = self.length.checked_div(self.noise.block).unwrap_or(0) * rows;
        let mut out = Noised {
            ids: vec![-7; tokens],
            mask: vec![9; tokens],
            weight: vec![f32::NAN; tokens],
            rate: vec![f32::NAN; blocks],
        };
        forward(
            &self.noise,
            Forward {
                ids: &self.ids,
                eligible: self.eligible.as_deref(),
                sequences: &self.sequences,
                length: self.length,
                given: self.given.as_ref().map(|[rate, weight]| Given { rate, weight }),
                noised: &mut out.ids,
                mask: &mut out.mask,
                weight: &mut out.weight,
                rate: &mut out.rate,
            },
        )?;
        Ok(out)
    }

    pub fn run(&self) -> Noised {
        self.try_run().unwrap()
    }

    /// On a device, the ids `skew` elements past an aligned address.
    fn run_on(&self, gpu: &Arc<Gpu>, skew: usize) -> Noised {
        fn upload<T: bytemuck::Pod>(gpu: &Arc<Gpu>, dtype: DType, values: &[T]) -> DeviceBuffer {
            DeviceBuffer::upload(gpu, dtype, bytemuck::cast_slice(values)).unwrap()
        }
        fn host<T: bytemuck::Pod>(buffer: &DeviceBuffer) -> Vec<T> {
            let mut values = vec![T::zeroed(); buffer.len()];
            buffer.download(0..buffer.len(), bytemuck::cast_slice_mut(&mut values)).unwrap();
            values
        }
        let (tokens, rows) = (self.ids.len(), self.sequences.len());
        let blocks = self.length / self.noise.block * rows;
        let mut skewed = vec![-1; skew];
        skewed.extend(&self.ids);
        let ids = upload(gpu, DType::I32, &skewed);
        let eligible = self.eligible.as_ref().map(|all| upload(gpu, DType::U8, all));
        let sequences = upload(gpu, DType::I64, &self.sequences);
        let given =
            self.given.as_ref().map(|all| all.each_ref().map(|v| upload(gpu, DType::F32, v)));
        // Filled, so that what is not written shows.
        let mut noised = upload(gpu, DType::I32, &vec![-7i32; tokens]);
        let mut mask = upload(gpu, DType::U8, &vec![9u8; tokens]);
        let mut weight = upload(gpu, DType::F32, &vec![f32::NAN; tokens]);
        let mut rate = upload(gpu, DType::F32, &vec![f32::NAN; blocks]);
        let args = launch::Forward {
            ids: ids.slice(skew..skew + tokens).unwrap(),
            eligible: eligible.as_ref().map(DeviceBuffer::whole),
            sequences: sequences.whole(),
            length: self.length,
            given: given
                .as_ref()
                .map(|[rate, weight]| launch::Given { rate: rate.whole(), weight: weight.whole() }),
            noised: noised.whole_mut(),
            mask: mask.whole_mut(),
            weight: weight.whole_mut(),
            rate: rate.whole_mut(),
        };
        launch::forward(&self.noise, args).unwrap();
        Noised { ids: host(&noised), mask: host(&mask), weight: host(&weight), rate: host(&rate) }
    }

    /// The sequence at a place of the batch, alone.
    fn row(&self, row: usize) -> Batch {
        let part = row * self.length..(row + 1) * self.length;
        let blocks = self.length / self.noise.block;
        Batch {
            noise: self.noise,
            length: self.length,
            sequences: vec![self.sequences[row]],
            ids: self.ids[part.clone()].to_vec(),
            eligible: self.eligible.as_ref().map(|all| all[part].to_vec()),
            given: self
                .given
                .clone()
                .map(|all| all.map(|all| all[row * blocks..(row + 1) * blocks].to_vec())),
        }
    }
}

fn noises() -> impl Strategy<Value = Noise> {
    let block = prop::sample::select(vec![1usize, 2, 3, 4, 5, 8, 16, 17, 32, 100, 700]);
    let rate = prop_oneof![
        Just(Rate::Clip),
        Just(Rate::Affine),
        (0.01f32..1.0, 0.0f32..1.0)
            .prop_map(|(high, part)| Rate::Range { low: (high * part).max(1e-3), high }),
    ];
    let draw = prop_oneof![
        any::<bool>().prop_map(|forced| Draw::Independent { forced }),
        (0u32..6, 0u32..9)
            .prop_map(|(least, more)| Draw::Counted { least, most: (least + more).max(1) }),
    ];
    let weight = prop::sample::select(vec![Weight::Rate, Weight::Unbiased, Weight::One]);
    let order = prop::sample::select(vec![Order::CapThenRate, Order::RateThenCap]);
    let warm_up = prop::option::weighted(
        0.3,
        (1e-3f32..=1.0, order).prop_map(|(cap, order)| WarmUp { cap, order }),
    );
    let strata = prop::sample::select(vec![1u32, 1, 2, 16, 65536]);
    (block, rate, draw, weight, warm_up, strata, any::<u64>()).prop_map(
        |(block, rate, draw, weight, warm_up, strata, seed)| Noise {
            rate,
            draw,
            weight,
            warm_up,
            strata,
            ..Noise::clipped(block, 1000, 1001, seed)
        },
    )
}

fn batches() -> impl Strategy<Value = Batch> {
    (noises(), 0usize..5, 0usize..40, prop::option::of(0u32..4), any::<u64>(), any::<bool>())
        .prop_map(|(noise, rows, blocks, prompt, number, given)| {
            // Above one piece of the walk for the longest.
            let length = noise.block * blocks.min(5000 / noise.block);
            let mut batch = Batch::new(noise, rows, length);
            batch
                .sequences
                .iter_mut()
                .for_each(|s| *s = s.wrapping_mul(0x9E37).wrapping_add(number));
            batch.eligible = prompt.map(|kind| {
                (0..rows * length)
                    .map(|i| match kind {
                        0 => 0,
                        1 => u8::from(i % length.max(1) > length / 2),
                        2 => (i * 7919 % 3) as u8,
                        _ => 255,
                    })
                    .collect()
            });
            if given {
                let count = rows * blocks.min(5000 / noise.block);
                let value = |i: usize| (i % 10 + 1) as f32 / 10.0;
                batch.given =
                    Some([(0..count).map(value).collect(), (0..count).map(|i| i as f32).collect()]);
            }
            batch
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn it_is_its_definition(batch in batches()) {
        let (got, mut want) = (batch.run(), definition::noise(&batch));
        // The definition adds probabilities in another order: the last bit of an unbiased weight may differ.
        for (got, want) in got.weight.iter().zip(&mut want.weight) {
            let near = (*got - *want).abs() <= 1.2e-7 * *want;
            *want = if near && batch.noise.weight == Weight::Unbiased { *got } else { *want };
        }
        prop_assert_eq!(&got, &want);
    }

    #[test]
    fn nothing_around_a_sequence_matters(batch in batches()) {
        let whole = batch.run();
        prop_assert_eq!(&whole, &batch.run());
        let rows = batch.sequences.len();
        let blocks = batch.length / batch.noise.block;
        // From the last to the first, alone.
        for row in (0..rows).rev() {
            let alone = batch.row(row).run();
            let part = row * batch.length..(row + 1) * batch.length;
            prop_assert_eq!(&alone.ids, &whole.ids[part.clone()]);
            prop_assert_eq!(&alone.mask, &whole.mask[part.clone()]);
            prop_assert_eq!(&alone.weight, &whole.weight[part]);
            prop_assert_eq!(&alone.rate, &whole.rate[row * blocks..(row + 1) * blocks]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_device_draws_the_same_bits(batch in batches(), skew in 0usize..4, order in 0usize..5) {
        let want = batch.run();
        let order = ThreadOrder::ALL[order];
        for device in devices::all() {
            let Some(gpu) = device.gpu() else { continue };
            prop_assert_eq!(&with_order(order, || batch.run_on(gpu, skew)), &want, "{} {:?}", device, order);
        }
    }
}

#[test]
fn threads_and_instruction_sets_change_nothing() {
    for draw in [Draw::Independent { forced: true }, Draw::Counted { least: 1, most: 3 }] {
        let noise = Noise { draw, ..Noise::clipped(4, 500, 501, 3) };
        let mut batch = Batch::new(noise, 37, 1024);
        batch.eligible = Some((0..37 * 1024).map(|i| u8::from(i % 5 > 0)).collect());
        let want = batch.run();
        for threads in [1, 2, 4] {
            pool::set_threads(threads).unwrap();
            assert_eq!(batch.run(), want, "{threads} threads");
        }
        simd::limit(simd::Level::Portable);
        let portable = batch.run();
        simd::limit(simd::detected());
        assert_eq!(portable, want, "without SIMD");
    }
}

#[test]
fn every_block_that_can_has_a_mask() {
    let mut batch = Batch::new(Noise::clipped(4, 500, 501, 8), 4, 4000);
    batch.eligible = Some((0..16_000).map(|i| u8::from(i % 4000 >= 1998)).collect());
    let out = batch.run();
    for (b, mask) in out.mask.chunks(4).enumerate() {
        let masked: u8 = mask.iter().sum();
        let eligible = batch.eligible.as_ref().unwrap()[b * 4..(b + 1) * 4].iter().sum::<u8>();
        assert_eq!(masked > 0, eligible > 0, "block {b}");
        assert!(masked <= eligible);
        assert_eq!(out.rate[b] == 0.0, eligible == 0);
    }
    batch.eligible = Some(vec![0; 16_000]);
    let out = batch.run();
    assert_eq!(out.ids, batch.ids);
    assert!(out.mask.iter().all(|m| *m == 0) && out.weight.iter().all(|w| *w == 0.0));
}

#[test]
fn a_warm_up_grows_and_ends() {
    assert_eq!(WarmUp::linear(100, 100, 1e-3), None);
    assert_eq!(WarmUp::linear(0, 0, 1e-3), None);
    let caps: Vec<f32> = (0..100).map(|s| WarmUp::linear(s, 100, 1e-3).unwrap().cap).collect();
    assert!(caps.is_sorted() && caps[0] == 1e-3 && caps[99] < 1.0);
    let fraction = |cap, order| {
        let warm_up = Some(WarmUp { cap, order });
        let noise = Noise { warm_up, ..Noise::clipped(4, 500, 501, 8) };
        let noise = Noise { draw: Draw::Independent { forced: false }, ..noise };
        let out = Batch::new(noise, 64, 1024).run();
        assert!(out.weight.iter().all(|w| *w == 0.0 || *w == 1.0));
        out.mask.iter().map(|m| f64::from(*m)).sum::<f64>() / out.mask.len() as f64
    };
    // Below a cap of 1/B the clip decides in one order, the cap in the other.
    assert!((fraction(0.01, Order::CapThenRate) - 0.25).abs() < 0.01);
    assert!((fraction(0.01, Order::RateThenCap) - 0.01 * 17.0 / 32.0).abs() < 0.002);
    assert!((fraction(1.0, Order::CapThenRate) - 17.0 / 32.0).abs() < 0.01);
}

#[test]
fn the_op_is_the_kernel() {
    let mut batch = Batch::new(Noise::clipped(4, 500, 501, 8), 3, 32);
    batch.sequences = vec![7, 9, 8];
    batch.eligible = Some((0..96).map(|i| u8::from(i % 3 > 0)).collect());
    let ids = Tensor::from_i32(batch.ids.clone(), &[3, 32]).unwrap();
    let want = batch.run();
    let marks: Vec<i32> = batch.eligible.iter().flatten().map(|e| i32::from(*e)).collect();
    let marks_as_ids = Tensor::from_i32(marks, &[3, 32]).unwrap();
    let mut eligible = Storage::recycled(DType::U8, 96);
    eligible.bytes_mut().copy_from_slice(batch.eligible.as_ref().unwrap());
    let eligible = Tensor::new(eligible, &[3, 32]).unwrap();
    for device in devices::all() {
        let (ids, eligible) =
            (ids.to_device(&device).unwrap(), eligible.to_device(&device).unwrap());
        let got = ops::block_noise(&ids, Some(&eligible), &batch.sequences, &batch.noise).unwrap();
        let host = |tensor: &Tensor| tensor.to_device(&Device::Cpu).unwrap();
        assert_eq!(host(&got.ids).i32s().unwrap(), want.ids);
        assert_eq!(host(&got.mask).bytes().unwrap(), want.mask);
        assert_eq!(host(&got.weight).f32s().unwrap(), want.weight);
        assert_eq!(host(&got.rate).f32s().unwrap(), want.rate);
        assert_eq!(got.rate.shape(), [3, 8]);
        let wrong = marks_as_ids.to_device(&device).unwrap();
        let error = ops::block_noise(&ids, Some(&wrong), &batch.sequences, &batch.noise);
        assert!(error.unwrap_err().is_dtype());
        let odd = Noise { block: 5, ..batch.noise };
        assert!(ops::block_noise(&ids, None, &batch.sequences, &odd).unwrap_err().is_shape());
        if device != Device::Cpu {
            let error = ops::block_noise(&ids, Some(&marks_as_ids), &batch.sequences, &batch.noise);
            assert!(error.unwrap_err().is_unsupported());
        }
    }
    let flat = Tensor::from_i32(vec![0; 4], &[4]).unwrap();
    assert!(ops::block_noise(&flat, None, &[0], &batch.noise).unwrap_err().is_shape());
    let floats = Tensor::from_f32(vec![0.0; 4], &[1, 4]).unwrap();
    assert!(ops::block_noise(&floats, None, &[0], &batch.noise).unwrap_err().is_dtype());
}

#[test]
fn bad_input_is_named() {
    let good = Batch::new(Noise::clipped(4, 500, 501, 8), 2, 8);
    assert!(good.try_run().is_ok());
    let error = |change: &dyn Fn(&mut Batch)| {
        let mut batch = good.clone();
        change(&mut batch);
        batch.try_run().unwrap_err()
    };
    let ragged = error(&|b| (b.length, b.ids) = (6, vec![0; 12]));
    assert!(ragged.is_shape() && ragged.to_string().contains("6 tokens"), "{ragged}");
    let mask = error(&|b| b.noise.mask_id = 501);
    assert!(mask.is_index() && mask.to_string().contains("501"), "{mask}");
    assert!(error(&|b| b.noise.mask_id = -1).is_index());
    assert!(error(&|b| b.ids.truncate(3)).is_shape());
    assert!(error(&|b| b.eligible = Some(vec![1; 3])).is_shape());
    assert!(error(&|b| b.given = Some([vec![0.5; 4], vec![0.5; 3]])).is_shape());
    for rate in [0.0, -1.0, 1.5, f32::NAN] {
        assert!(error(&|b| b.given = Some([vec![rate; 4], vec![0.5; 4]])).is_invalid());
    }
    assert!(error(&|b| b.noise.block = 0).is_invalid());
    assert!(error(&|b| b.noise.block = 8193).is_invalid());
    for (low, high) in [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (f32::NAN, 1.0)] {
        assert!(error(&|b| b.noise.rate = Rate::Range { low, high }).is_invalid());
    }
    for (least, most) in [(0, 0), (3, 2)] {
        assert!(error(&|b| b.noise.draw = Draw::Counted { least, most }).is_invalid());
    }
    for cap in [0.0, 1.1, f32::NAN] {
        let warm_up = Some(WarmUp { cap, order: Order::CapThenRate });
        assert!(error(&|b| b.noise.warm_up = warm_up).is_invalid());
    }
    for strata in [0, 3, 1 << 17] {
        assert!(error(&|b| b.noise.strata = strata).is_invalid());
    }
}
