//! Runs Gradstone's CUDA kernels on the CPU: the same `.cu` files, each CUDA thread a fiber.
//!
//! What lives here: the door to the engine (`engine/`, C++), the table of the kernels it has, and the order in which
//! threads are run. What does not: memory (a kernel gets plain pointers), launch plans (the library's), any number.
//! For tests only; `docs/kernels/host-engine.md` says what is modelled and how to read a sanitizer's report.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Which of the threads that can run goes on, and in which order blocks begin.
///
/// CUDA promises no order, so a kernel's bits must be the same in all of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The lowest thread: the first warp runs ahead as far as barriers allow. The default.
    LowestFirst,
    /// The highest thread, and the last block first.
    HighestFirst,
    /// One after another.
    RoundRobin,
    /// Drawn from this seed, the blocks too.
    Random(u64),
}

impl Order {
    /// The kind's name, as the ledger has it.
    fn kind(self) -> &'static str {
        match self {
            Order::LowestFirst => "lowest_first",
            Order::HighestFirst => "highest_first",
            Order::RoundRobin => "round_robin",
            Order::Random(_) => "random",
        }
    }

    /// One of each kind, and two of the random ones: what a test runs through.
    pub const ALL: [Order; 5] = [
        Order::LowestFirst,
        Order::HighestFirst,
        Order::RoundRobin,
        Order::Random(1),
        Order::Random(2),
    ];
}

/// Which blocks of a grid run, counted with x fastest, then y, then z. The others do not exist.
///
/// The end of a grid of billions of blocks can be run this way, and nothing before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// The default.
    All,
    /// So many at the beginning.
    First(u64),
    /// So many at the end.
    Last(u64),
}

impl Blocks {
    /// The first block and the number of blocks (0: all), as the engine wants them. More than there are stay more.
    fn within(self, grid: [u32; 3]) -> Option<(u64, u64)> {
        // Wide enough: 2^31 * 2^16 * 2^16 is the most that a launch may ask for, and the engine says so of others.
        let all = grid.iter().fold(1u64, |blocks, side| blocks.saturating_mul(u64::from(*side)));
        match self {
            Blocks::All => Some((0, 0)),
            Blocks::First(0) | Blocks::Last(0) => None,
            Blocks::First(count) => Some((0, count)),
            Blocks::Last(count) => Some((all.saturating_sub(count), count)),
        }
    }
}

/// A kernel that can be launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// The name to launch it by. Names that begin with `planted_` or `probe_` are the engine's own tests.
    pub name: String,
    /// Size of its argument struct in bytes.
    pub args_size: usize,
    /// The largest block it is built for, in threads.
    pub max_threads: u32,
}

thread_local! {
    static ORDER: Cell<Order> = const { Cell::new(Order::LowestFirst) };
    static WORKERS: Cell<u32> = const { Cell::new(0) };
    static BLOCKS: Cell<Blocks> = const { Cell::new(Blocks::All) };
}

/// Restores a thread-local setting when the closure returns or panics.
struct Restore<T: Copy + 'static>(&'static std::thread::LocalKey<Cell<T>>, T);

impl<T: Copy> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// Launches of this thread within `body` use `order`.
pub fn with_order<R>(order: Order, body: impl FnOnce() -> R) -> R {
    let _restore = Restore(&ORDER, ORDER.replace(order));
    body()
}

/// Launches of this thread within `body` spread their blocks over `workers` OS threads (0: one per core).
pub fn with_workers<R>(workers: u32, body: impl FnOnce() -> R) -> R {
    let _restore = Restore(&WORKERS, WORKERS.replace(workers));
    body()
}

/// Launches of this thread within `body` run these blocks of their grid alone.
pub fn with_blocks<R>(blocks: Blocks, body: impl FnOnce() -> R) -> R {
    let _restore = Restore(&BLOCKS, BLOCKS.replace(blocks));
    body()
}

/// `Request` of `engine/launch.cpp`.
#[repr(C)]
struct Request {
    kernel: *const c_char,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_bytes: u32,
    order_kind: u32,
    order_seed: u64,
    args: *const c_void,
    args_size: usize,
    first_block: u64,
    blocks: u64,
    workers: u32,
}

/// `Kernel` of `engine/interface.h`.
#[repr(C)]
struct RawKernel {
    name: *const c_char,
    args_size: usize,
    args_alignment: usize,
    max_threads: u32,
    file: *const c_char,
    run: *const c_void,
}

unsafe extern "C" {
    fn gradstone_host_launch(
        request: *const Request,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn gradstone_host_kernel(index: usize) -> *const RawKernel;
    fn gradstone_host_sanitizer() -> *const c_char;
}

/// Runs `kernel` on a grid of blocks and returns when it has ended.
///
/// `shared_bytes` is the dynamic shared memory of a block. The order of threads, the number of OS threads and the blocks
/// that run are those of [`with_order`], [`with_workers`] and [`with_blocks`].
///
/// # Errors
/// A message, when there is no such kernel, its argument struct has another size, the grid or the block is outside
/// CUDA's limits or the kernel's, too much shared memory is asked for, or blocks that the grid does not have; and when the kernel breaks a rule that the engine
/// sees, with file and line, block and thread. The next launch is not affected. In a sanitizer build, what the sanitizer
/// finds ends the process with its report.
///
/// # Safety
/// `args` must point to `args_size` readable bytes that are the kernel's argument struct, and the pointers in it must
/// be valid for what the kernel does with them, from several threads.
pub unsafe fn launch(
    kernel: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    args: *const u8,
    args_size: usize,
) -> Result<(), String> {
    let name = CString::new(kernel).map_err(|_| format!("{kernel:?} is no kernel's name"))?;
    let (order_kind, order_seed) = match ORDER.get() {
        Order::LowestFirst => (0, 0),
        Order::HighestFirst => (1, 0),
        Order::RoundRobin => (2, 0),
        Order::Random(seed) => (3, seed),
    };
    let Some((first_block, blocks)) = BLOCKS.get().within(grid) else {
        return Err(format!("{kernel}: a launch of no blocks"));
    };
    let request = Request {
        kernel: name.as_ptr(),
        grid,
        block,
        dynamic_bytes: shared_bytes,
        order_kind,
        order_seed,
        args: args.cast(),
        args_size,
        first_block,
        blocks,
        workers: WORKERS.get(),
    };
    let mut message = [0u8; 2048];
    // SAFETY: the request and the buffer live through the call, the layouts are those of launch.cpp, and the caller
    // answers for the arguments.
    let status =
        unsafe { gradstone_host_launch(&request, message.as_mut_ptr().cast(), message.len()) };
    if status == 0 {
        return note(kernel, ORDER.get());
    }
    let text = CStr::from_bytes_until_nul(&message).map(CStr::to_string_lossy).unwrap_or_default();
    Err(text.into_owned())
}

/// What has been launched, for `kernels/host/coverage`: the file that `GRADSTONE_HOST_LEDGER` names gets a line
/// `kernel order` the first time that a process runs a kernel in an order. A suite of many processes has no other memory.
fn note(kernel: &str, order: Order) -> Result<(), String> {
    static FILE: LazyLock<Option<OsString>> =
        LazyLock::new(|| std::env::var_os("GRADSTONE_HOST_LEDGER"));
    static SEEN: Mutex<BTreeSet<(String, &str)>> = Mutex::new(BTreeSet::new());
    let Some(file) = &*FILE else { return Ok(()) };
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if !seen.insert((kernel.to_owned(), order.kind())) {
        return Ok(());
    }
    let line = format!("{kernel} {}\n", order.kind());
    let opened = OpenOptions::new().append(true).create(true).open(file);
    opened
        .and_then(|mut ledger| ledger.write_all(line.as_bytes()))
        .map_err(|e| format!("GRADSTONE_HOST_LEDGER={}: {e}", file.display()))
}

/// All kernels of this build, in the order of their source files.
pub fn kernels() -> Vec<KernelInfo> {
    let mut found = Vec::new();
    loop {
        // SAFETY: any index may be asked for; the table is complete before main and never changes.
        let kernel = unsafe { gradstone_host_kernel(found.len()).as_ref() };
        let Some(kernel) = kernel else { return found };
        // SAFETY: the name is a string literal of the kernel's file.
        let name = unsafe { CStr::from_ptr(kernel.name) }.to_string_lossy().into_owned();
        found.push(KernelInfo {
            name,
            args_size: kernel.args_size,
            max_threads: kernel.max_threads,
        });
    }
}

/// The sanitizer this build's kernels are instrumented with: `address` (with undefined behaviour), `thread` or `none`.
pub fn sanitizer() -> &'static str {
    // SAFETY: a string literal of the engine.
    unsafe { CStr::from_ptr(gradstone_host_sanitizer()) }.to_str().unwrap_or("none")
}
