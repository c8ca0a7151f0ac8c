//! Tensors: contiguous, row-major, shared by reference, with run-time dtype.
//!
//! A [`Tensor`] is a cheap handle. Reshapes and slices of the leading dimension are views of the same storage;
//! everything else copies. Elements live in host memory or on a device ([`Tensor::to_device`]); an operation runs where
//! its inputs are. [`autograd`] records how tensors came about; the operations themselves live in
//! [`ops`](crate::ops).

pub mod autograd;
pub mod file;
mod place;
mod storage;

pub use autograd::{Gradients, ParamId};
pub use storage::Storage;
pub(crate) use storage::widen;

use crate::device::Device;
use crate::device::cpu::memory::Buffer;
use crate::device::gpu::DeviceBuffer;
use crate::dtype::{DType, FloatSlice};
use crate::error::{Error, Result};
use autograd::Edge;
use std::fmt;
use std::ops::Deref;
use std::ops::Range;
use std::sync::Arc;

/// An n-dimensional array and, where gradients are wanted, its place in the graph.
///
/// ```
/// use gradstone::Tensor;
/// let x = Tensor::from_f32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2])?;
/// assert_eq!(x.rows(1..3)?.f32s()?, [3.0, 4.0, 5.0, 6.0]);
/// # Ok::<(), gradstone::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor {
    memory: Memory,
    offset: usize,
    shape: Arc<[usize]>,
    edge: Option<Edge>,
}

/// Where the elements are.
#[derive(Clone)]
enum Memory {
    Host(Arc<Storage>),
    Device(Arc<DeviceBuffer>),
}

impl Tensor {
    /// A tensor over `storage`.
    ///
    /// # Errors
    /// [`Error::is_shape`] when the element counts differ.
    pub fn new(storage: Storage, shape: &[usize]) -> Result<Tensor> {
        if storage.len() != elements(shape)? {
            return Err(Error::shape(format!(
                "a tensor of shape {shape:?} from {} elements",
                storage.len()
            )));
        }
        let memory = Memory::Host(Arc::new(storage));
        Ok(Tensor { memory, offset: 0, shape: shape.into(), edge: None })
    }

    /// An f32 tensor; [`Error::is_shape`] when the count does not fit.
    pub fn from_f32(values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        Tensor::new(Storage::F32(values.into()), shape)
    }

    /// An i32 tensor; [`Error::is_shape`] when the count does not fit.
    pub fn from_i32(values: Vec<i32>, shape: &[usize]) -> Result<Tensor> {
        Tensor::new(Storage::I32(values.into()), shape)
    }

    /// A tensor of `dtype` from f32 values, rounded to nearest even.
    pub fn from_buffer(values: Buffer<f32>, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::new(Storage::from_f32(values, dtype), shape)
    }

    /// An f32 scalar, shape `[]`.
    pub fn scalar(value: f32) -> Tensor {
        let memory = Memory::Host(Arc::new(Storage::F32(vec![value].into())));
        Tensor { memory, offset: 0, shape: [].into(), edge: None }
    }

    /// Zeros.
    pub fn zeros(shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::new(Storage::zeros(dtype, elements(shape)?), shape)
    }

    /// The shape, slowest dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True when some dimension is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match &self.memory {
            Memory::Host(storage) => storage.dtype(),
            Memory::Device(buffer) => buffer.dtype(),
        }
    }

    /// The last dimension; 1 for a scalar.
    pub fn last_dim(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The product of all dimensions but the last: a tensor as `[leading, last]`.
    pub fn leading(&self) -> usize {
        match self.shape.split_last() {
            Some((_, rest)) => rest.iter().product(),
            None => 1,
        }
    }

    fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// The host memory behind it; [`Error::is_unsupported`] for a tensor on another device.
    fn host(&self) -> Result<&Storage> {
        match &self.memory {
            Memory::Host(storage) => Ok(storage),
            Memory::Device(buffer) => Err(Error::unsupported(format!(
                "a tensor {:?} {} on {} where host memory is needed (copy it with to_device)",
                self.shape,
                self.dtype(),
                buffer.gpu().describe()
            ))),
        }
    }

    /// The elements as floats of the tensor's type; [`Error::is_dtype`] for an integer tensor.
    pub fn floats(&self) -> Result<FloatSlice<'_>> {
        let all = self.host()?.floats().ok_or_else(|| self.wrong_dtype("a float type"))?;
        all.slice(self.range())
    }

    /// The elements of an f32 tensor; [`Error::is_dtype`] for another.
    pub fn f32s(&self) -> Result<&[f32]> {
        match self.host()? {
            Storage::F32(values) => Ok(&values[self.range()]),
            _ => Err(self.wrong_dtype("f32")),
        }
    }

    /// The elements of an i32 tensor; [`Error::is_dtype`] for another.
    pub fn i32s(&self) -> Result<&[i32]> {
        match self.host()? {
            Storage::I32(values) => Ok(&values[self.range()]),
            _ => Err(self.wrong_dtype("i32")),
        }
    }

    /// The elements as f32: borrowed from an f32 tensor, converted from bf16 and f16.
    pub fn to_f32s(&self) -> Result<F32s<'_>> {
        match self.host()? {
            Storage::F32(values) => Ok(F32s::Borrowed(&values[self.range()])),
            _ => Ok(F32s::Owned(widen(self.floats()?))),
        }
    }

    /// The only element of a float tensor; [`Error::is_shape`] when there is not exactly one. From another device it is
    /// copied, which waits for everything that was started there.
    pub fn item(&self) -> Result<f32> {
        match &*self.to_device(&Device::Cpu)?.to_f32s()? {
            [value] => Ok(*value),
            values => Err(Error::shape(format!("item of a tensor of {} elements", values.len()))),
        }
    }

    /// The elements as bytes, in memory order; [`Error::is_unsupported`] for a tensor on another device.
    pub fn bytes(&self) -> Result<&[u8]> {
        let size = self.dtype().size();
        Ok(&self.host()?.bytes()[self.offset * size..(self.offset + self.len()) * size])
    }

    fn wrong_dtype(&self, wanted: &str) -> Error {
        Error::dtype(format!("a tensor {:?} {} where {wanted} is needed", self.shape, self.dtype()))
    }

    /// The elements as an owned f32 buffer: the tensor's own memory when nothing else holds it, a copy otherwise.
    pub fn into_buffer(self) -> Result<Buffer<f32>> {
        let (range, whole) = (self.range(), self.len() == self.host()?.len());
        match self.memory {
            Memory::Device(_) => Err(Error::state("into_buffer of device memory")),
            Memory::Host(storage) => match Arc::try_unwrap(storage) {
                Ok(Storage::F32(values)) if whole => Ok(values),
                Ok(storage) => widen_range(&storage, range),
                Err(shared) => widen_range(&shared, range),
            },
        }
    }

    /// A view with another shape and the same elements, outside the graph.
    pub(crate) fn view(&self, shape: &[usize]) -> Result<Tensor> {
        if elements(shape)? != self.len() {
            return Err(Error::shape(format!("reshape {:?} to {shape:?}", self.shape)));
        }
        Ok(Tensor {
            memory: self.memory.clone(),
            offset: self.offset,
            shape: shape.into(),
            edge: None,
        })
    }

    /// A view of `range` of the leading dimension, outside the graph ([`ops::rows`](crate::ops::rows) is the
    /// differentiable one).
    ///
    /// # Errors
    /// [`Error::is_index`] when the range does not lie inside.
    pub fn rows(&self, range: Range<usize>) -> Result<Tensor> {
        let (first, rest) = match self.shape.split_first() {
            Some((first, rest)) if range.start <= range.end && range.end <= *first => (range, rest),
            _ => {
                return Err(Error::index(format!("rows {range:?} of a tensor {:?}", self.shape)));
            }
        };
        let width: usize = rest.iter().product();
        let mut shape = self.shape.to_vec();
        shape[0] = first.len();
        Ok(Tensor {
            memory: self.memory.clone(),
            offset: self.offset + first.start * width,
            shape: shape.into(),
            edge: None,
        })
    }

    /// The same elements outside the graph.
    #[must_use]
    pub fn detach(&self) -> Tensor {
        Tensor { edge: None, ..self.clone() }
    }

    /// The same elements as a leaf: its gradient arrives in a [`Gradients`] under `id`.
    #[must_use]
    pub fn tracked(&self, id: ParamId) -> Tensor {
        Tensor { edge: Some(Edge::Leaf(id)), ..self.clone() }
    }

    /// True when the tensor has a place in the graph: a leaf, or computed from one.
    pub fn is_tracked(&self) -> bool {
        self.edge.is_some()
    }

    pub(crate) fn edge(&self) -> Option<&Edge> {
        self.edge.as_ref()
    }

    pub(crate) fn with_edge(self, edge: Edge) -> Tensor {
        Tensor { edge: Some(edge), ..self }
    }

    /// The storage for writing, copied first when something else holds it or when this is a part of it.
    pub(crate) fn storage_mut(&mut self) -> Result<&mut Storage> {
        if self.len() != self.host()?.len() {
            let mut own = Storage::recycled(self.dtype(), self.len());
            own.bytes_mut().copy_from_slice(self.bytes()?);
            self.memory = Memory::Host(Arc::new(own));
            self.offset = 0;
        }
        match &mut self.memory {
            Memory::Host(storage) => Ok(Arc::make_mut(storage)),
            Memory::Device(_) => Err(Error::state("host storage of device memory")),
        }
    }
}

/// f32 elements, borrowed where the storage is f32 and converted otherwise.
pub enum F32s<'a> {
    /// The tensor's own memory.
    Borrowed(&'a [f32]),
    /// A converted copy.
    Owned(Buffer<f32>),
}

impl Deref for F32s<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            F32s::Borrowed(values) => values,
            F32s::Owned(values) => values,
        }
    }
}

fn widen_range(storage: &Storage, range: Range<usize>) -> Result<Buffer<f32>> {
    match storage.floats() {
        Some(floats) => Ok(widen(floats.slice(range)?)),
        None => Err(Error::dtype(format!("floats from {} storage", storage.dtype()))),
    }
}

fn elements(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d))
        .ok_or_else(|| Error::shape(format!("shape {shape:?} has more elements than an address")))
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor {:?} {}", self.shape, self.dtype())?;
        match &self.memory {
            Memory::Host(_) => Ok(()),
            Memory::Device(buffer) => write!(f, " on {}", buffer.gpu().describe()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_share_and_check() {
        let x = Tensor::from_f32((0..12).map(|i| i as f32).collect(), &[4, 3]).unwrap();
        let middle = x.rows(1..3).unwrap();
        assert_eq!(middle.shape(), [2, 3]);
        assert_eq!(middle.f32s().unwrap(), [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(middle.view(&[6]).unwrap().rows(2..3).unwrap().item().unwrap(), 5.0);
        assert!(x.rows(3..5).unwrap_err().is_index());
        assert!(x.view(&[5]).unwrap_err().is_shape());
        assert!(x.i32s().unwrap_err().is_dtype());
        assert!(Tensor::from_f32(vec![0.0], &[2]).unwrap_err().is_shape());
        assert!(Tensor::zeros(&[usize::MAX, 3], DType::F32).unwrap_err().is_shape());
    }

    #[test]
    fn writing_a_view_leaves_its_origin() {
        let x = Tensor::from_f32(vec![1.0, 2.0, 3.0], &[3]).unwrap();
        let mut y = x.rows(1..2).unwrap();
        y.storage_mut().unwrap().bytes_mut().fill(0);
        assert_eq!(x.f32s().unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(y.f32s().unwrap(), [0.0]);
    }
}
