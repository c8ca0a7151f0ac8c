//! Ids to what they stand for: text ids to bytes, image ids to codebook vectors and back.

use super::operation::operation;
use super::reference::{differs, host_bytes, places};
use super::{Case, Give, inputs, size, vq};
use crate::DType;
use crate::device::Device;
use crate::error::Result;
use crate::kernels::token_decode::{Decode, Table, Token, decode, launch};
use crate::tensor::{Storage, Tensor};
use std::rc::Rc;

struct Texts {
    tokens: Vec<Token>,
    table: Table,
    table_on_gpu: Option<launch::DeviceTable>,
    ids: Tensor,
    known: Vec<i32>,
    segments: Vec<usize>,
    /// Bytes of each id when special tokens are left out.
    lengths: Vec<usize>,
}

pub(super) fn cases(device: &Device, quick: bool, give: &mut Give<'_>) -> Result<()> {
    let vocab = size(device, quick, [2000, 32_000, 151_936]);
    let shape = size(device, quick, [[3, 500], [256, 4096], [4096, 4096]]);
    let of = Rc::new(Texts::new(device, vocab, shape)?);
    // Ids in, where each text begins and the bytes out; what is looked up stays in a cache.
    let total: usize = of.known.iter().map(|id| of.lengths[*id as usize]).sum();
    let bytes = 4 * of.known.len() + 8 * of.segments.len() + total;
    let run = Rc::clone(&of);
    let work = operation(move || run.decoded(total), move |out| of.error(out));
    give(Case::bytes("text", &shape, DType::I32, bytes, work))?;
    vq::cases(device, quick, give)
}

/// Words of two to eight letters, some special, some longer than an entry of the table.
fn token(id: usize) -> Token {
    let length = if id % 997 == 996 { 20 } else { 2 + id * 7 % 7 };
    let letter = |i: usize| b'a' + ((id * 31 + i * 17) % 26) as u8;
    Token {
        bytes: (0..length).map(letter).collect(),
        special: id % 1000 == 999,
        ..Token::default()
    }
}

impl Texts {
    fn new(device: &Device, vocab: usize, [texts, length]: [usize; 2]) -> Result<Texts> {
        let tokens: Vec<Token> = (0..vocab).map(token).collect();
        let table = Table::new(tokens.iter().cloned().map(Some), None)?;
        let known = inputs::ids(texts * length, vocab, 1);
        let upload = |gpu| launch::DeviceTable::upload(gpu, &table);
        let written = |token: &Token| if token.special { 0 } else { token.bytes.len() };
        Ok(Texts {
            table_on_gpu: device.gpu().map(upload).transpose()?,
            ids: Tensor::from_i32(known.clone(), &[texts, length])?.to_device(device)?,
            segments: (0..=texts).map(|text| text * length).collect(),
            lengths: tokens.iter().map(written).collect(),
            tokens,
            table,
            known,
        })
    }

    /// The bytes of all texts, `total` of them, and where each text begins.
    fn decoded(&self, total: usize) -> Result<[Tensor; 2]> {
        let segments = &self.segments[..];
        let places = [segments.len()];
        let Some(table) = &self.table_on_gpu else {
            let read =
                Decode { ids: self.ids.i32s()?, segments, skip_special: true, starts: false };
            let out = decode(&self.table, &read)?;
            let offsets: Vec<i64> = out.offsets.iter().map(|at| *at as i64).collect();
            let bytes = [out.bytes.len()];
            return Ok([
                Tensor::new(Storage::U8(out.bytes.into()), &bytes)?,
                Tensor::new(Storage::I64(offsets.into()), &places)?,
            ]);
        };
        let ids = self.ids.device_slice()?;
        let measured = launch::measure(table, ids, segments, true)?;
        let mut bytes = Tensor::recycled_on(&[total], DType::U8, ids.gpu())?;
        measured.copy(bytes.device_slice_mut()?)?;
        let mut offsets = Tensor::recycled_on(&places, DType::I64, ids.gpu())?;
        offsets.device_slice_mut()?.copy_from(measured.offsets())?;
        Ok([bytes, offsets])
    }

    /// Where every text begins, and the bytes of some.
    fn error(&self, [bytes, offsets]: &[Tensor; 2]) -> Result<f64> {
        let offsets = offsets.to_device(&Device::Cpu)?;
        let got: &[i64] = bytemuck::cast_slice(offsets.bytes()?);
        let of_text = |text: usize| &self.known[self.segments[text]..self.segments[text + 1]];
        let texts = self.segments.len() - 1;
        let mut want = vec![0usize];
        for text in 0..texts {
            let length: usize = of_text(text).iter().map(|id| self.lengths[*id as usize]).sum();
            want.push(want[text] + length);
        }
        let wide: Vec<i64> = want.iter().map(|at| *at as i64).collect();
        let mut largest = differs(got, &wide);
        if bytes.len() != want[texts] {
            return Ok(f64::INFINITY);
        }
        for text in places(texts) {
            let mut plain = Vec::new();
            for id in of_text(text) {
                let Token { bytes, special, .. } = &self.tokens[*id as usize];
                plain.extend_from_slice(if *special { &[] } else { bytes });
            }
            let here = host_bytes(&bytes.rows(want[text]..want[text + 1])?)?;
            largest = largest.max(differs(&here, &plain));
        }
        Ok(largest)
    }
}
