//! Reverse-mode differentiation: the smallest thing with PyTorch's semantics.
//!
//! An operation calls [`record`] with its inputs, its outputs and a [`Backward`] value that owns what the gradient
//! needs. [`backward`] walks the recorded nodes from the newest to the oldest: a process-wide sequence number is
//! already a topological order, so there is no recursion and no search. A node's state is consumed by its visit, so
//! saved memory is freed (or reused in place) as the walk goes, and a second walk through it is an error.
//!
//! Rules:
//! * Every gradient is f32, whatever the storage type of what it belongs to.
//! * The first gradient to reach a tensor is moved, later ones are added to it; there are no zero tensors.
//! * An operation gets `None` for an output that did not reach the loss, and skips inputs that are not wanted.
//! * Gradients of leaves go into a caller-owned [`Gradients`]; calling [`backward`] again adds to it.
//!
//! What is not here on purpose: second derivatives, hooks on intermediates, in-place operations on tracked tensors.

use super::Tensor;
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use crate::kernels::elementwise::launch::accumulate;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// One gradient (f32) per output or input of an operation; `None` where there is none.
pub type Grads = Vec<Option<Tensor>>;

/// What one recorded call needs to send gradients back. Its fields are the saved state.
pub trait Backward: Send + Sync {
    /// The operation's name, for error messages.
    fn name(&self) -> &'static str;

    /// Turns the gradients of the outputs (`None`: that output did not reach the loss) into one entry per input,
    /// `None` where `!wanted[i]`.
    fn backward(self: Box<Self>, grads: Grads, wanted: &[bool]) -> Result<Grads>;
}

/// The name of a leaf in a [`Gradients`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(u64);

impl ParamId {
    /// An id that no other leaf of this process has.
    pub fn fresh() -> ParamId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        ParamId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Where a tensor stands in the graph.
#[derive(Clone)]
pub(crate) enum Edge {
    /// A parameter.
    Leaf(ParamId),
    /// Output number `.1` of a recorded call.
    Output(Arc<Node>, usize),
}

/// One recorded call.
pub(crate) struct Node {
    sequence: u64,
    outputs: usize,
    /// `None` once a backward walk has used it.
    state: Mutex<Option<Box<dyn Backward>>>,
    inputs: Mutex<Vec<Option<Edge>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Drop for Node {
    /// Takes a chain of nodes apart in a loop: dropping it by recursion would overflow the stack.
    fn drop(&mut self) {
        let mut pending = std::mem::take(&mut *lock(&self.inputs));
        while let Some(edge) = pending.pop() {
            if let Some(Edge::Output(node, _)) = edge
                && let Some(mut last) = Arc::into_inner(node)
            {
                // The last owner: empty it so that its own drop finds nothing.
                pending.append(last.inputs.get_mut().unwrap_or_else(|p| p.into_inner()));
            }
        }
    }
}

static SEQUENCE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static ENABLED: Cell<bool> = const { Cell::new(true) };
}

struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        ENABLED.set(self.0);
    }
}

/// Runs `f` without recording, on this thread: nothing is saved, nothing is tracked.
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore(ENABLED.replace(false));
    f()
}

/// Runs `f` with recording, on this thread.
///
/// What is handed to a thread pool should begin with it: a thread that waits inside its own [`no_grad`] may be given the
/// work meanwhile, and would go on without recording.
pub fn with_grad<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore(ENABLED.replace(true));
    f()
}

/// True when an operation on `inputs` will be recorded: an operation that saves something costly asks first.
pub fn recording(inputs: &[&Tensor]) -> bool {
    ENABLED.get() && inputs.iter().any(|input| input.is_tracked())
}

/// Puts `outputs` into the graph as computed from `inputs`. The only door.
///
/// `save` runs only when [`recording`]: inference never builds or keeps state. Outputs that have no gradient are
/// simply not passed.
pub fn record<B: Backward + 'static>(
    inputs: &[&Tensor],
    outputs: Vec<Tensor>,
    save: impl FnOnce() -> B,
) -> Vec<Tensor> {
    if !recording(inputs) {
        return outputs;
    }
    let node = Arc::new(Node {
        sequence: SEQUENCE.fetch_add(1, Ordering::Relaxed),
        outputs: outputs.len(),
        state: Mutex::new(Some(Box::new(save()))),
        inputs: Mutex::new(inputs.iter().map(|input| input.edge().cloned()).collect()),
    });
    let place = |(i, output): (usize, Tensor)| output.with_edge(Edge::Output(Arc::clone(&node), i));
    outputs.into_iter().enumerate().map(place).collect()
}

/// [`record`] for the usual case of one output.
pub fn record_one<B: Backward + 'static>(
    inputs: &[&Tensor],
    output: Tensor,
    save: impl FnOnce() -> B,
) -> Tensor {
    let fallback = output.clone();
    record(inputs, vec![output], save).pop().unwrap_or(fallback)
}

/// The gradients of leaves, summed over every [`backward`] that was given it. Always f32.
#[derive(Default)]
pub struct Gradients {
    by_id: BTreeMap<ParamId, Tensor>,
}

impl Gradients {
    /// An empty store.
    pub fn new() -> Gradients {
        Gradients::default()
    }

    /// The gradient of a leaf; `None` when none has arrived.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.by_id.get(&id)
    }

    /// Forgets every gradient.
    pub fn clear(&mut self) {
        self.by_id.clear();
    }

    /// Adds to the gradient of a leaf.
    ///
    /// # Errors
    /// [`Error::is_shape`] when it differs in size from what is there.
    pub fn add(&mut self, id: ParamId, gradient: Tensor) -> Result<()> {
        let sum = match self.by_id.remove(&id) {
            Some(present) => add(present, gradient)?,
            None => gradient,
        };
        self.by_id.insert(id, sum);
        Ok(())
    }

    /// The leaves that have one, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Tensor)> {
        self.by_id.iter().map(|(id, gradient)| (*id, gradient))
    }
}

/// `a + b` for f32 gradients, in `a`'s memory where nothing else holds it.
fn add(mut a: Tensor, b: Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        return Err(Error::shape(format!(
            "gradients {:?} and {:?} of one tensor",
            a.shape(),
            b.shape()
        )));
    }
    if Tensor::common_gpu("gradients", &[&a, &b])?.is_some() {
        let total = a.device_slice_mut()?;
        accumulate(total, b.device_slice()?)?;
        return Ok(a);
    }
    let b = b.f32s()?;
    if let super::Storage::F32(sum) = a.storage_mut()? {
        const BLOCK: usize = 16 * 1024;
        pool::blocks(sum, BLOCK, |i, sum| {
            sum.iter_mut().zip(&b[i * BLOCK..]).for_each(|(sum, b)| *sum += b);
        });
    }
    Ok(a)
}

/// Sends the gradient 1 back from a scalar loss.
///
/// # Errors
/// [`Error::is_shape`] when `loss` has more than one element, [`Error::is_state`] when it is not tracked or when a
/// part of its graph was used before, and whatever an operation reports.
///
/// ```
/// use gradstone::{Tensor, ops, tensor::{Gradients, ParamId, autograd}};
/// let id = ParamId::fresh();
/// let x = Tensor::from_f32(vec![1.0, -2.0], &[2])?.tracked(id);
/// let mut gradients = Gradients::new();
/// autograd::backward(&ops::sum(&ops::mul(&x, &x)?)?, &mut gradients)?;
/// assert_eq!(gradients.get(id).map(|g| g.f32s().map(<[f32]>::to_vec)).transpose()?, Some(vec![2.0, -4.0]));
/// # Ok::<(), gradstone::Error>(())
/// ```
pub fn backward(loss: &Tensor, gradients: &mut Gradients) -> Result<()> {
    if loss.len() != 1 {
        return Err(Error::shape(format!("backward from {loss:?}: a loss has one element")));
    }
    let one = Tensor::scalar(1.0).view(loss.shape())?.to_device(&loss.device())?;
    backward_from(vec![(loss.clone(), one)], gradients)
}

/// Sends given gradients back from several tensors in one walk: for losses computed outside the graph.
///
/// `roots` are tracked tensors with the f32 gradient of the loss in each, of the same shape.
///
/// # Errors
/// As [`backward`].
pub fn backward_from(roots: Vec<(Tensor, Tensor)>, gradients: &mut Gradients) -> Result<()> {
    let mut walk = Walk { pending: BTreeMap::new(), oldest: 0 };
    for (root, gradient) in roots {
        if root.shape() != gradient.shape() {
            return Err(Error::shape(format!("gradient {gradient:?} for {root:?}")));
        }
        let Some(edge) = root.edge() else {
            return Err(Error::state("backward from a tensor that is not tracked"));
        };
        walk.deliver(edge, gradient, gradients)?;
        drop(root);
    }
    walk.run(gradients)
}

struct Walk {
    /// Nodes that some gradient has reached, by sequence number.
    pending: BTreeMap<u64, (Arc<Node>, Grads)>,
    /// A node older than this was recorded outside a checkpointed function.
    oldest: u64,
}

impl Walk {
    fn deliver(&mut self, edge: &Edge, gradient: Tensor, leaves: &mut Gradients) -> Result<()> {
        match edge {
            Edge::Leaf(id) => leaves.add(*id, gradient),
            Edge::Output(node, index) => {
                if node.sequence < self.oldest {
                    return Err(Error::state(
                        "checkpoint: the function uses a tracked tensor that is not among its inputs",
                    ));
                }
                let (_, slots) = self
                    .pending
                    .entry(node.sequence)
                    .or_insert_with(|| (Arc::clone(node), vec![None; node.outputs]));
                let sum = match slots[*index].take() {
                    Some(present) => add(present, gradient)?,
                    None => gradient,
                };
                slots[*index] = Some(sum);
                Ok(())
            }
        }
    }

    fn run(mut self, leaves: &mut Gradients) -> Result<()> {
        while let Some((_, (node, grads))) = self.pending.pop_last() {
            let Some(state) = lock(&node.state).take() else {
                return Err(Error::state("backward through a graph that was already used"));
            };
            let edges = std::mem::take(&mut *lock(&node.inputs));
            let wanted: Vec<bool> = edges.iter().map(Option::is_some).collect();
            let name = state.name();
            let inputs =
                state.backward(grads, &wanted).map_err(|e| e.at(format!("{name} backward")))?;
            if inputs.len() != edges.len() {
                return Err(Error::state(format!(
                    "{name} backward: {} gradients for {} inputs",
                    inputs.len(),
                    edges.len()
                )));
            }
            for (edge, gradient) in edges.into_iter().zip(inputs) {
                if let (Some(edge), Some(gradient)) = (edge, gradient) {
                    self.deliver(&edge, gradient, leaves)?;
                }
            }
        }
        Ok(())
    }
}

/// Runs `f(inputs)` without keeping anything but `inputs`, and runs it again when its gradient is asked for.
///
/// Everything in `f` that needs a gradient (weights too) must be among `inputs`: a tracked tensor that `f` captures
/// is an error during [`backward`], not a lost gradient. `f` must compute the same when it runs again.
///
/// # Errors
/// What `f` reports.
pub fn checkpoint<F>(inputs: &[&Tensor], f: F) -> Result<Vec<Tensor>>
where
    F: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
{
    let plain: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
    let outputs = no_grad(|| f(&plain))?.into_iter().map(|output| output.detach()).collect();
    Ok(record(inputs, outputs, || Checkpoint { inputs: plain, f }))
}

struct Checkpoint<F> {
    inputs: Vec<Tensor>,
    f: F,
}

impl<F> Backward for Checkpoint<F>
where
    F: Fn(&[Tensor]) -> Result<Vec<Tensor>> + Send + Sync,
{
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn backward(self: Box<Self>, grads: Grads, wanted: &[bool]) -> Result<Grads> {
        let ids: Vec<ParamId> = wanted.iter().map(|_| ParamId::fresh()).collect();
        let place = |((input, id), wanted): ((&Tensor, &ParamId), &bool)| {
            if *wanted { input.tracked(*id) } else { input.clone() }
        };
        let inputs: Vec<Tensor> = self.inputs.iter().zip(&ids).zip(wanted).map(place).collect();
        let oldest = SEQUENCE.load(Ordering::Relaxed);
        let outputs = with_grad(|| (self.f)(&inputs))?;
        let mut own = Gradients::new();
        let mut walk = Walk { pending: BTreeMap::new(), oldest };
        for (output, gradient) in outputs.iter().zip(grads) {
            if let (Some(edge), Some(gradient)) = (output.edge(), gradient) {
                walk.deliver(edge, gradient, &mut own)?;
            }
        }
        drop(outputs);
        walk.run(&mut own)?;
        let found = ids.iter().map(|id| own.by_id.remove(id)).collect();
        if !own.by_id.is_empty() {
            return Err(Error::state(
                "checkpoint: the function uses a tracked tensor that is not among its inputs",
            ));
        }
        Ok(found)
    }
}
