//! Rows by index and the gradient that adds into them, on the emulated device: the bits of the CPU, in every order of
//! threads; indices outside the table.

use crate::memory::{self, FLOATS, back, bits, blank, in_every_order, normal, placed, shifted};
use gradstone::device::Device;
use gradstone::device::gpu::DeviceBuffer;
use gradstone::kernels::rows;
use gradstone::rng::{Sequence, Stream};
use gradstone::{DType, Tensor};

/// Indices on the device, in either type.
fn uploaded(on: &Device, index: &[i64], dtype: DType) -> Tensor {
    let host = match dtype {
        DType::I32 => {
            let narrow = index.iter().map(|i| i32::try_from(*i).unwrap()).collect();
            Tensor::from_i32(narrow, &[index.len()]).unwrap()
        }
        _ => {
            let storage = gradstone::tensor::Storage::I64(index.to_vec().into());
            Tensor::new(storage, &[index.len()]).unwrap()
        }
    };
    host.to_device(on).unwrap()
}

fn drawn(len: usize, below: usize, seed: u64) -> Vec<i64> {
    let mut draws = Sequence::new(seed, Stream::Free, 5);
    (0..len).map(|_| i64::from(draws.below(below as u32))).collect()
}

fn gathered(on: &Device, table: &Tensor, index: &Tensor, width: usize) -> Tensor {
    let mut out = blank(on, &[index.len(), width], table.dtype());
    let (from, places) = (table.device_slice().unwrap(), index.device_slice().unwrap());
    rows::launch::gather(from, places, width, out.device_slice_mut().unwrap()).unwrap();
    back(&out)
}

fn scattered(on: &Device, x: &Tensor, index: &Tensor, table: [usize; 2]) -> Tensor {
    let mut out = blank(on, &table, DType::F32);
    let (from, places) = (x.device_slice().unwrap(), index.device_slice().unwrap());
    rows::launch::scatter_add(from, places, table[1], out.device_slice_mut().unwrap()).unwrap();
    back(&out)
}

#[test]
fn gathered_rows_are_copies() {
    let on = memory::device();
    for (count, width, len) in [(1, 1, 1), (5, 3, 9), (7, 16, 0), (31, 24, 40), (3, 1025, 2)] {
        for dtype in FLOATS {
            let values = normal(count * width, 1);
            let table = placed(&on, &values, &[count, width], dtype);
            let index = drawn(len, count, 2);
            let on_host = back(&table);
            let want: Vec<u8> = index
                .iter()
                .flat_map(|row| bits(&on_host.rows(*row as usize..*row as usize + 1).unwrap()))
                .collect();
            for kind in [DType::I32, DType::I64] {
                let places = uploaded(&on, &index, kind);
                let got = in_every_order(|| vec![gathered(&on, &table, &places, width)]);
                assert_eq!(bits(&got[0]), want, "{width} {dtype} {kind}");
            }
            let off = shifted(&on, &values, &[count, width], dtype);
            let places = uploaded(&on, &index, DType::I32);
            assert_eq!(bits(&gathered(&on, &off, &places, width)), want, "{width} {dtype}");
        }
    }
}

/// Bytes, in rows that no wider word divides.
#[test]
fn rows_of_an_odd_number_of_bytes() {
    let on = memory::device();
    let gpu = on.gpu().unwrap();
    let table: Vec<u8> = (0..35).collect();
    let upload = |dtype, bytes: &[u8]| DeviceBuffer::upload(gpu, dtype, bytes).unwrap();
    let places = [4i32, 0, 4, 2];
    let (from, index) =
        (upload(DType::U8, &table), upload(DType::I32, bytemuck::cast_slice(&places)));
    let want: Vec<u8> =
        places.iter().flat_map(|r| &table[*r as usize * 7..][..7]).copied().collect();
    let copied = || {
        let mut out = upload(DType::U8, &[0xff; 28]);
        rows::launch::gather(from.whole(), index.whole(), 7, out.whole_mut()).unwrap();
        let mut got = vec![0; 28];
        out.download(0..28, &mut got).unwrap();
        got
    };
    for order in gradstone_host::Order::ALL {
        assert_eq!(gradstone_host::with_order(order, copied), want, "{order:?}");
    }
}

#[test]
fn gradients_have_the_bits_of_the_cpu() {
    let on = memory::device();
    // The last: one row gets all.
    let sizes = [(1, 1, 1), (5, 3, 9), (7, 16, 0), (50, 33, 300), (9, 1100, 20), (1, 4, 700)];
    for (count, width, len) in sizes {
        let index = drawn(len, count, 3);
        let dy = normal(len * width, 4);
        let ids: Vec<i32> = index.iter().map(|i| *i as i32).collect();
        let mut want = vec![0.0; count * width];
        rows::scatter_add(&mut want, &ids, width, &dy).unwrap();
        let want = Tensor::from_f32(want, &[count, width]).unwrap();
        for kind in [DType::I32, DType::I64] {
            let places = uploaded(&on, &index, kind);
            let aligned = placed(&on, &dy, &[len, width], DType::F32);
            let off = shifted(&on, &dy, &[len, width], DType::F32);
            for x in [aligned, off] {
                let got = in_every_order(|| vec![scattered(&on, &x, &places, [count, width])]);
                assert_eq!(bits(&got[0]), bits(&want), "{count} {width} {len} {kind}");
            }
        }
    }
}

#[test]
fn an_index_outside_touches_nothing_and_is_reported() {
    let on = memory::device();
    let gpu = on.gpu().unwrap();
    let table = placed(&on, &normal(12, 1), &[4, 3], DType::F32);
    for bad in [-1, 4, i64::from(i32::MAX), i64::from(i32::MIN)] {
        for kind in [DType::I32, DType::I64] {
            let index = uploaded(&on, &[1, bad, 3, 1], kind);
            gpu.check_status().unwrap();
            let got = gathered(&on, &table, &index, 3);
            let error = gpu.check_status().unwrap_err();
            assert!(error.is_index() && error.to_string().contains(&gpu.describe()), "{error}");
            let on_host = back(&table);
            let want = on_host.f32s().unwrap();
            let got = got.f32s().unwrap();
            assert_eq!(got[..3], want[3..6]);
            assert_eq!(got[3..6], [0.0; 3]);
            assert_eq!(got[6..9], want[9..12]);
            // What stands in the bad place reaches nothing, a NaN neither.
            let mut dy = normal(12, 2);
            dy[3..6].fill(f32::NAN);
            let x = placed(&on, &dy, &[4, 3], DType::F32);
            let got = in_every_order(|| vec![scattered(&on, &x, &index, [4, 3])]);
            assert!(gpu.check_status().unwrap_err().is_index());
            let got = got[0].f32s().unwrap();
            assert_eq!([&got[..3], &got[6..9]].concat(), [0.0; 6]);
            assert_eq!(got[9..12], dy[6..9]);
            let both: Vec<f32> = (0..3).map(|i| dy[i] + dy[9 + i]).collect();
            assert_eq!(got[3..6], both);
        }
    }
}

#[test]
fn misfits_are_errors() {
    let on = memory::device();
    let t = |len: usize, dtype: DType| placed(&on, &vec![1.0; len], &[len], dtype);
    let (table, index, mut out) =
        (t(12, DType::F32), uploaded(&on, &[0, 1], DType::I32), t(6, DType::F32));
    let (from, places) = (table.device_slice().unwrap(), index.device_slice().unwrap());
    let to = out.device_slice_mut().unwrap();
    assert!(rows::launch::gather(from, places, 5, to).unwrap_err().is_shape());
    let to = out.device_slice_mut().unwrap();
    let error = rows::launch::gather(from, from.slice(0..2).unwrap(), 3, to).unwrap_err();
    assert!(error.is_dtype() && error.to_string().contains("f32"), "{error}");
    let to = out.device_slice_mut().unwrap();
    assert!(rows::launch::scatter_add(from, places, 3, to).unwrap_err().is_shape());
    let mut half = t(6, DType::F16);
    let to = half.device_slice_mut().unwrap();
    assert!(rows::launch::gather(from, places, 3, to).unwrap_err().is_dtype());
    // The host sees the ids of an embedding: an error before any launch.
    let table = placed(&on, &normal(12, 1), &[4, 3], DType::F32);
    let error = gradstone::ops::embedding(&table, &[0, 4]).unwrap_err();
    assert!(error.is_index() && error.to_string().contains('4'), "{error}");
    on.gpu().unwrap().check_status().unwrap();
    // Storage types and devices are not mixed.
    let host = Tensor::from_f32(vec![1.0; 3], &[1, 3]).unwrap();
    let error = gradstone::ops::concat(&[&table, &host]).unwrap_err();
    assert!(error.is_unsupported(), "{error}");
}
