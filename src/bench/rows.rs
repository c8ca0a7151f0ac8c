//! Rows of a table by index, and the gradient that adds into them.

use super::operation::operation;
use super::reference::{differs, places, row};
use super::{Case, Give, inputs, size};
use crate::DType;
use crate::device::Device;
use crate::device::cpu::memory::Buffer;
use crate::error::Result;
use crate::kernels::rows::{gather, launch, scatter_add};
use crate::tensor::{Storage, Tensor};

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    // [tokens, rows of the table, width]
    let shape = size(device, quick, [[40, 11, 36], [8192, 8192, 1024], [16_384, 32_000, 4096]]);
    let [tokens, vocab, width] = shape;
    let ids = inputs::ids(tokens, vocab, 1);
    let on_device = Tensor::from_i32(ids.clone(), &[tokens])?.to_device(device)?;
    let mut distinct = ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    for dtype in [DType::F32, DType::Bf16] {
        let table = inputs::tensor(device, dtype, &[vocab, width], 2)?;
        let (read, index, known) = (table.clone(), on_device.clone(), ids.clone());
        let error = move |out: &Tensor| {
            places(tokens).into_iter().try_fold(0f64, |largest, at| {
                let want = row(&table, known[at] as usize)?;
                Ok(largest.max(differs(&row(out, at)?, &want)))
            })
        };
        let work = operation(move || gathered(&read, &index), error);
        // A row that is wanted again may come from a cache.
        let bytes = (distinct.len() + tokens) * width * dtype.size() + 4 * tokens;
        give(Case::bytes("gather", &shape, dtype, bytes, work))?;
    }
    let dy = inputs::tensor(device, DType::F32, &[tokens, width], 3)?;
    let read = dy.clone();
    let error = move |out: &Tensor| {
        // Ids of many places, and of few or none.
        places(vocab).into_iter().try_fold(0f64, |largest, id| {
            let mut want = vec![0f32; width];
            for place in (0..tokens).filter(|place| ids[*place] as usize == id) {
                // In the order of the places, in f32: the order is the result.
                want.iter_mut().zip(row(&dy, place)?).for_each(|(sum, dy)| *sum += dy as f32);
            }
            let got: Vec<f32> = row(out, id)?.iter().map(|sum| *sum as f32).collect();
            Ok(largest.max(differs(&got, &want)))
        })
    };
    let work = operation(move || scattered(&read, &on_device, vocab), error);
    // Every gradient once, the whole table once.
    let bytes = 4 * (tokens + vocab) * width + 4 * tokens;
    give(Case::bytes("scatter_add", &shape, DType::F32, bytes, work))
}

fn gathered(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (width, shape) = (table.last_dim(), [ids.len(), table.last_dim()]);
    let Some(gpu) = table.gpu() else {
        let mut out = Storage::recycled(table.dtype(), ids.len() * width);
        gather(table.bytes()?, ids.i32s()?, width * table.dtype().size(), out.bytes_mut())?;
        return Tensor::new(out, &shape);
    };
    let mut out = Tensor::recycled_on(&shape, table.dtype(), gpu)?;
    let (table, ids) = (table.device_slice()?, ids.device_slice()?);
    launch::gather(table, ids, width, out.device_slice_mut()?)?;
    Ok(out)
}

fn scattered(dy: &Tensor, ids: &Tensor, vocab: usize) -> Result<Tensor> {
    let (width, shape) = (dy.last_dim(), [vocab, dy.last_dim()]);
    let Some(gpu) = dy.gpu() else {
        let mut table = Buffer::zeroed(vocab * width);
        scatter_add(&mut table, ids.i32s()?, width, dy.f32s()?)?;
        return Tensor::from_buffer(table, &shape, DType::F32);
    };
    let mut table = Tensor::recycled_on(&shape, DType::F32, gpu)?;
    let (dy, ids) = (dy.device_slice()?, ids.device_slice()?);
    launch::scatter_add(dy, ids, width, table.device_slice_mut()?)?;
    Ok(table)
}
