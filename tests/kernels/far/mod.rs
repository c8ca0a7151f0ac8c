//! Index arithmetic beyond 2^31 and 2^32 elements, of every kernel, without the elements.
//!
//! A case launches its kernel twice. The near run is a small launch. In the far run [`Run::at`] elements (or rows, tokens,
//! blocks: what the case counts) lie before the ones that exist: lengths and offsets count them, pointers are moved back
//! over them, and of a grid for all of them only the blocks run whose elements exist. Both runs must leave the same bits. An
//! index that lost its upper half lands gigabytes away: in memory that is not there (a fault, or the sanitizer's report) or
//! beside the outputs, whose bits then differ. Launches are raw, on the host engine: no device has to hold anything.

mod args;
mod attention;
mod credit;
mod elements;
mod logits;
mod loss;
mod memory;
mod rows;
mod text;
mod tokens;

use gradstone::dtype::{DType, Float};
use gradstone_host::{Blocks, launch, with_blocks};
use half::{bf16, f16};
use memory::Memory;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use crate::device_memory::uniform;

/// Elements before the ones that exist: beyond 2^32, and neither an `int` nor an `unsigned` of it is anywhere near. A
/// multiple of all tiles.
pub const FAR: i64 = 3 << 31;
/// The same where a kernel has a block for each: a grid has less than 2^31. And where a contract says int32.
pub const BLOCKS: i64 = (1 << 31) - (1 << 16);
/// The same where one block walks over a record of every so many elements: just beyond 2^31, for all records are read.
pub const WALKED: i64 = 1 << 31;

/// Storage types and what kernels of theirs are called.
pub const FLOATS: [(DType, &str); 3] =
    [(DType::F32, "f32"), (DType::Bf16, "bf16"), (DType::F16, "f16")];

/// Kernels that are one block which walks over everything there is: a far run of them would take what the real one does.
/// No index of theirs is made of others, each is a loop's own `int64_t`.
const WALKED_WHOLE: &[(&str, &str)] = &[
    ("advantage_batch", "one block reads every reward of the batch"),
    ("advantage_finish", "one block reads and writes every advantage of the batch"),
    ("linear_logprob_rows", "one block reads every target; rows are below 2^31 by contract"),
    ("rollout_correction_total", "one block adds the records of all sequences"),
    ("token_selection", "one block reads every token of the batch several times"),
];

/// Blocks of `each` for `count` things.
pub fn blocks(count: i64, each: i64) -> i64 {
    (count + each - 1) / each
}

/// A kernel's arguments of nothing: cases name what they mean.
pub fn zeroed<T: Copy>() -> T {
    // SAFETY: used with the structs of kernels alone: numbers and pointers, for which zeros are a value.
    unsafe { std::mem::zeroed() }
}

/// An output: where it lies in its memory and what its words count from.
struct Output {
    memory: usize,
    from: usize,
    bytes: usize,
    /// Subtracted from each word (of 4 or 8 bytes) before outputs are compared: indices differ between the runs.
    base: Option<(usize, i64)>,
    /// What it held before, where it must have changed: else the case looks at nothing.
    before: Option<Vec<u8>>,
}

/// One of the two runs of a case.
pub struct Run {
    /// Elements before the ones that exist: 0 in the near run.
    pub at: i64,
    kernel: String,
    /// Of the near run.
    blocks: Cell<u64>,
    memory: RefCell<Vec<Memory>>,
    outputs: RefCell<Vec<Output>>,
    /// Counts inputs, so that no two are alike.
    seed: Cell<u64>,
    problem: RefCell<Option<String>>,
}

impl Run {
    fn new(kernel: &str, at: i64, blocks: u64) -> Run {
        Run {
            at,
            kernel: kernel.to_owned(),
            blocks: Cell::new(blocks),
            memory: RefCell::default(),
            outputs: RefCell::default(),
            seed: Cell::new(1),
            problem: RefCell::default(),
        }
    }

    /// `at`, where that is not beyond what a contract allows.
    pub fn up_to(&self, most: i64) -> i64 {
        self.at.min(most)
    }

    fn keep(&self, memory: Memory) -> (usize, *mut u8) {
        let mut all = self.memory.borrow_mut();
        all.push(memory);
        let last = all.len() - 1;
        (last, all[last].start())
    }

    /// These values, `before` of their kind behind the pointer.
    pub fn input<T: Copy, P>(&self, before: i64, values: &[T]) -> *const P {
        let (_, start) = self.keep(Memory::held(values));
        start.cast::<T>().wrapping_offset(-before as isize).cast()
    }

    /// The same where a struct could have it written: another kernel does.
    pub fn given<T: Copy, P>(&self, before: i64, values: &[T]) -> *mut P {
        self.input::<T, P>(before, values).cast_mut()
    }

    /// `count` random numbers in [-0.5, 0.5) of a type.
    pub fn floats<P>(&self, dtype: DType, before: i64, count: i64) -> *const P {
        let values = self.numbers(count);
        match dtype {
            DType::Bf16 => self.input(before, &narrowed::<bf16>(&values)),
            DType::F16 => self.input(before, &narrowed::<f16>(&values)),
            _ => self.input(before, &values),
        }
    }

    /// `count` random numbers, for a case that makes something of them.
    pub fn numbers(&self, count: i64) -> Vec<f32> {
        self.seed.set(self.seed.get() + 1);
        let mut next = uniform(self.seed.get() * 7919);
        (0..count).map(|_| next()).collect()
    }

    /// Memory that the kernel writes, of these values before.
    pub fn output<T: Copy, P>(&self, before: i64, values: &[T]) -> *mut P {
        self.output_from(before, values, None, true)
    }

    /// The same where the kernel leaves what is right: a status, flags that stay.
    pub fn quiet<T: Copy, P>(&self, before: i64, values: &[T]) -> *mut P {
        self.output_from(before, values, None, false)
    }

    /// Memory for `count` indices (i32 or i64) that count from `base`: they are compared less it.
    pub fn indices<T: TryFrom<i64> + Copy>(&self, before: i64, count: i64, base: i64) -> *mut T {
        let Ok(none) = T::try_from(base - 1) else { panic!("{}: {base} is no index", self.kernel) };
        let values = vec![none; count as usize];
        self.output_from(before, &values, Some((size_of::<T>(), base)), true)
    }

    /// One index that the kernel counts up from `base`.
    pub fn counter<P>(&self, base: i32) -> *mut P {
        self.output_from(0, &[base], Some((4, i64::from(base))), true)
    }

    /// Memory for `count` floats of a type.
    pub fn blank<P>(&self, dtype: DType, before: i64, count: i64) -> *mut P {
        let (_, start) = self.outputs_in(
            Memory::held(&vec![0xa5u8; count as usize * dtype.size()]),
            vec![(0, count as usize * dtype.size())],
            None,
            true,
        );
        start.wrapping_offset(-before as isize * dtype.size() as isize).cast()
    }

    /// Values at several places of address space that holds zeros: what a kernel reads that counts from its beginning.
    pub fn sparse<T: Copy, P>(&self, places: &[(i64, &[T])]) -> *const P {
        let (memory, _) = sparse_memory(places);
        self.keep(memory).1.cast_const().cast()
    }

    /// The same for what the kernel writes.
    pub fn sparse_output<T: Copy, P>(&self, places: &[(i64, &[T])]) -> *mut P {
        let (memory, parts) = sparse_memory(places);
        self.outputs_in(memory, parts, None, true).1.cast()
    }

    fn output_from<T: Copy, P>(
        &self,
        before: i64,
        values: &[T],
        base: Option<(usize, i64)>,
        changes: bool,
    ) -> *mut P {
        let memory = Memory::held(values);
        let (_, start) = self.outputs_in(memory, vec![(0, size_of_val(values))], base, changes);
        start.cast::<T>().wrapping_offset(-before as isize).cast()
    }

    fn outputs_in(
        &self,
        memory: Memory,
        parts: Vec<(usize, usize)>,
        base: Option<(usize, i64)>,
        changes: bool,
    ) -> (usize, *mut u8) {
        let (memory, start) = self.keep(memory);
        for (from, bytes) in parts {
            let before = changes.then(|| self.memory.borrow()[memory].bytes(from, bytes));
            self.outputs.borrow_mut().push(Output { memory, from, bytes, base, before });
        }
        (memory, start)
    }

    /// Launches the kernel: all blocks of the near run, as many of the far run's last ones.
    pub fn launch<A>(&self, grid: [i64; 3], threads: u32, shared: u32, args: &A) {
        self.launch_with(Blocks::Last, grid, threads, shared, args);
    }

    /// The same with the far run's first blocks, for kernels that take their work from its end.
    pub fn launch_first<A>(&self, grid: [i64; 3], threads: u32, shared: u32, args: &A) {
        self.launch_with(Blocks::First, grid, threads, shared, args);
    }

    fn launch_with<A>(
        &self,
        which: fn(u64) -> Blocks,
        grid: [i64; 3],
        threads: u32,
        shared: u32,
        args: &A,
    ) {
        if self.blocks.get() == 0 {
            self.blocks.set(grid.iter().product::<i64>() as u64);
        }
        self.launch_blocks(which(self.blocks.get()), grid, threads, shared, args);
    }

    /// Launches these blocks, in both runs.
    pub fn launch_blocks<A>(
        &self,
        which: Blocks,
        grid: [i64; 3],
        threads: u32,
        shared: u32,
        args: &A,
    ) {
        let sides = grid.map(|side| u32::try_from(side).unwrap_or(0)); // 0 is refused
        let (args, size) = (std::ptr::from_ref(args).cast(), size_of::<A>());
        // SAFETY: the case passes the kernel's own struct. Its pointers are valid where the blocks that run are meant to
        // read and write; that they do nothing else is what is tested, and the engine makes an error of most of it.
        let launched = with_blocks(which, || unsafe {
            launch(&self.kernel, sides, [threads, 1, 1], shared, args, size)
        });
        if let Err(problem) = launched {
            *self.problem.borrow_mut() = Some(format!("grid {grid:?}, {which:?}: {problem}"));
        }
    }

    /// What each output holds now, indices from their base.
    fn results(&self) -> Vec<Vec<u8>> {
        let memory = self.memory.borrow();
        let of = |output: &Output| {
            let mut bytes = memory[output.memory].bytes(output.from, output.bytes);
            if let Some((size, base)) = output.base {
                for word in bytes.chunks_mut(size) {
                    let less = base.to_le_bytes();
                    subtract(word, &less[..size]);
                }
            }
            bytes
        };
        self.outputs.borrow().iter().map(of).collect()
    }
}

fn narrowed<T: Float>(values: &[f32]) -> Vec<T> {
    values.iter().map(|x| T::from_f32(*x)).collect()
}

/// Little-endian words of the same size.
fn subtract(word: &mut [u8], less: &[u8]) {
    let mut borrow = 0i32;
    for (byte, less) in word.iter_mut().zip(less) {
        let difference = i32::from(*byte) - i32::from(*less) - borrow;
        borrow = i32::from(difference < 0);
        *byte = difference.rem_euclid(256) as u8;
    }
}

fn sparse_memory<T: Copy>(places: &[(i64, &[T])]) -> (Memory, Vec<(usize, usize)>) {
    let from = |place: i64| usize::try_from(place).unwrap() * size_of::<T>();
    let end = places.iter().map(|(place, values)| from(*place) + size_of_val(*values)).max();
    let mut memory = Memory::reserved(end.unwrap_or(1).max(1));
    for (place, values) in places {
        memory.write(from(*place), values);
    }
    (memory, places.iter().map(|(place, values)| (from(*place), size_of_val(*values))).collect())
}

/// Runs the cases and remembers which kernels they launched and what was wrong.
#[derive(Default)]
pub struct Cases {
    launched: BTreeSet<String>,
    problems: Vec<String>,
}

impl Cases {
    /// Both runs of a case. `at` is that of the far one.
    pub fn check(&mut self, kernel: impl Into<String>, at: i64, case: impl Fn(&Run)) {
        let kernel = kernel.into();
        let near = Run::new(&kernel, 0, 0);
        case(&near);
        let far = Run::new(&kernel, at, near.blocks.get());
        case(&far);
        if let Some(problem) = compare(&near, &far) {
            self.problems.push(format!("{kernel}: {problem}"));
        }
        self.launched.insert(kernel);
    }
}

fn compare(near: &Run, far: &Run) -> Option<String> {
    if let Some(problem) = &*near.problem.borrow() {
        return Some(format!("the near run, {problem}"));
    }
    if let Some(problem) = &*far.problem.borrow() {
        return Some(format!("{} before, {problem}", far.at));
    }
    let (expected, got) = (near.results(), far.results());
    assert_eq!(expected.len(), got.len(), "{}: its runs have the same outputs", near.kernel);
    for (i, (expected, got)) in expected.iter().zip(&got).enumerate() {
        if near.outputs.borrow()[i].before.as_ref() == Some(expected) {
            return Some(format!("output {i} of the case is not written by the near run"));
        }
        if let Some(byte) = (0..expected.len()).find(|byte| expected[*byte] != got[*byte]) {
            let size = expected.len();
            return Some(format!(
                "{} before: output {i} of the case differs from the near run at byte {byte} of {size}",
                far.at
            ));
        }
    }
    None
}

#[test]
fn every_kernel_indexes_beyond_two_to_the_31_elements() {
    let mut cases = Cases::default();
    elements::cases(&mut cases);
    rows::cases(&mut cases);
    logits::cases(&mut cases);
    tokens::cases(&mut cases);
    credit::cases(&mut cases);
    loss::cases(&mut cases);
    attention::cases(&mut cases);
    text::cases(&mut cases);
    let mut problems = cases.problems;

    let whole: BTreeSet<&str> = WALKED_WHOLE.iter().map(|(kernel, _)| *kernel).collect();
    let tests_of_the_engine = ["planted_", "probe_"];
    let kernels: BTreeSet<String> = gradstone_host::kernels()
        .into_iter()
        .map(|kernel| kernel.name)
        .filter(|name| !tests_of_the_engine.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    for kernel in &kernels {
        match (cases.launched.contains(kernel), whole.contains(kernel.as_str())) {
            (false, false) => problems.push(format!("{kernel}: no far case, nor in WALKED_WHOLE")),
            (true, true) => {
                problems.push(format!("{kernel}: has a far case and is in WALKED_WHOLE"))
            }
            _ => {}
        }
    }
    for kernel in whole.iter().filter(|kernel| !kernels.contains(**kernel)) {
        problems.push(format!("{kernel}: in WALKED_WHOLE, but there is no such kernel"));
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}
