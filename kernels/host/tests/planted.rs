//! Kernels with planted errors: which build must find which, and that none reports their fixed twins.
//!
//! A sanitizer ends the process, so each kernel runs in a child: this test binary again, told by the environment to
//! run one kernel. The child prints how it ended; the parent compares that and the sanitizer's report.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use gradstone_host::{Order, kernels, launch, sanitizer, with_order, with_workers};
use std::process::Command;

const BLOCK: usize = 64;
const BLOCKS: usize = 4;
const KERNEL: &str = "GRADSTONE_PLANTED_KERNEL";

/// `PlantedArgs` of `planted/planted.h`.
#[repr(C)]
struct Args {
    input: *const f32,
    out: *mut f32,
    counter: *mut u32,
}

/// How a build sees an error.
#[derive(Clone, Copy, Debug)]
enum Sees {
    /// It does not.
    Nothing,
    /// The launch fails and says this.
    Error(&'static str),
    /// The result is wrong under one order of threads at least.
    WrongValue,
    /// The sanitizer's report has this.
    Report(&'static str),
    /// The process dies of it without a word.
    Crash,
    /// Depends on what happens to lie beside the memory that is overrun.
    Chance,
}
use Sees::{Chance, Crash, Error, Nothing, Report, WrongValue};

/// What the fixed kernel writes.
#[derive(Clone, Copy)]
enum Writes {
    Input,
    Reversed,
    Rotated,
    Exchanged,
}
use Writes::{Exchanged, Input, Reversed, Rotated};

const RACE: Sees = Report("ThreadSanitizer: data race");

struct Case {
    name: &'static str,
    /// The file that every finding must name.
    file: &'static str,
    writes: Writes,
    plain: Sees,
    address: Sees,
    thread: Sees,
}

const fn case(
    name: &'static str,
    file: &'static str,
    writes: Writes,
    plain: Sees,
    address: Sees,
    thread: Sees,
) -> Case {
    Case { name, file, writes, plain, address, thread }
}

/// A rule of the engine, which every build enforces.
const fn rule(
    name: &'static str,
    file: &'static str,
    writes: Writes,
    message: &'static str,
) -> Case {
    case(name, file, writes, Error(message), Error(message), Error(message))
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    case("missing_barrier_write_read", "barriers.cu", Reversed, WrongValue, WrongValue, RACE),
    case("missing_barrier_read_write", "barriers.cu", Rotated, WrongValue, WrongValue, RACE),
    rule("divergent_barrier", "barriers.cu", Input, "divergent barrier"),
    rule("early_exit", "barriers.cu", Input, "left the kernel"),
    rule("skipped_barrier", "barriers.cu", Input, "left the kernel"),
    case("unwritten_shared", "barriers.cu", Input, WrongValue, WrongValue, WrongValue),
    case("global_read_past_end", "bounds.cu", Input, Nothing, Report("heap-buffer-overflow"), Chance),
    case("static_shared_write", "bounds.cu", Input, Error("0 bytes past the end of the 256 bytes of"),
         Report("use-after-poison"), Error("0 bytes past the end of the 256 bytes of")),
    case("static_shared_read", "bounds.cu", Reversed, WrongValue, Report("use-after-poison"), WrongValue),
    case("array_index", "bounds.cu", Input, Error("index 64 is outside"), Report("index 64 out of bounds"), Nothing),
    case("dynamic_shared_write", "bounds.cu", Input, Error("0 bytes past the end of the 256 bytes of dynamic"),
         Report("use-after-poison"), Error("0 bytes past the end of the 256 bytes of dynamic")),
    case("misaligned_vector", "bounds.cu", Input, Error("misaligned address"), Report("misaligned address"), Nothing),
    rule("misaligned_hinted", "bounds.cu", Input, "misaligned address"),
    case("null_pointer", "bounds.cu", Input, Error("null pointer"), Report("null pointer"), Report("SEGV")),
    case("wild_pointer", "bounds.cu", Input, Error("memory that is not there"), Report("SEGV"), Report("SEGV")),
    case("stack_overflow", "bounds.cu", Input, Error("stack overflowed"), Report("stack-overflow"), Crash),
    rule("too_much_shared", "bounds.cu", Input, "65536 bytes static"),
    rule("half_warp_full_mask", "warps.cu", Exchanged, "divergent warp collective"),
    rule("mask_without_caller", "warps.cu", Exchanged, "does not name its caller, lane 31"),
    rule("deadlock", "warps.cu", Input, "nobody can go on"),
    rule("lane_has_left", "warps.cu", Exchanged, "left the kernel"),
    case("shuffle_as_barrier", "warps.cu", Exchanged, Nothing, Nothing, RACE),
    case("copy_without_wait", "copies.cu", Reversed, WrongValue, WrongValue, RACE),
    rule("copy_wait_too_few", "copies.cu", Reversed, "1 copies of cp_async16 in flight"),
    rule("copy_without_commit", "copies.cu", Reversed, "1 copies of cp_async16 in flight"),
    case("copy_without_barrier", "copies.cu", Reversed, WrongValue, WrongValue, RACE),
    case("copy_too_early", "copies.cu", Reversed, WrongValue, WrongValue, RACE),
    case("racy_add_in_block", "races.cu", Input, Nothing, Nothing, RACE),
    case("racy_add_between_blocks", "races.cu", Input, Nothing, Nothing, RACE),
    case("last_block_without_fence", "races.cu", Input, Nothing, Nothing, RACE),
];

fn expected(writes: Writes, input: &[f32]) -> Vec<f32> {
    let source = |thread: usize| match writes {
        Input => thread,
        Reversed => BLOCK - 1 - thread,
        Rotated => (thread + 4) % BLOCK,
        Exchanged => thread ^ 1,
    };
    (0..BLOCKS * BLOCK).map(|i| input[i / BLOCK * BLOCK + source(i % BLOCK)]).collect()
}

/// The child's part: one kernel under every order.
fn run_kernel(kernel: &str) -> String {
    let fixed = kernel.trim_end_matches("_fixed");
    let case = CASES.iter().find(|case| fixed == format!("planted_{}", case.name)).unwrap();
    // In address builds the vectors' ends are guarded: each is an allocation of its own.
    let input: Vec<f32> = (0..BLOCKS * BLOCK).map(|i| i as f32 + 0.5).collect();
    for order in Order::ALL {
        let mut out = vec![-1.0f32; BLOCKS * BLOCK];
        let mut counter = Box::new(0u32);
        let args =
            Args { input: input.as_ptr(), out: out.as_mut_ptr(), counter: &raw mut *counter };
        let result = with_workers(2, || {
            with_order(order, || {
                // SAFETY: the struct is the kernel's, with pointers to the vectors above. What some kernels do wrong
                // with them is the point; it stays within a page of this child.
                unsafe {
                    let (grid, block) = ([BLOCKS as u32, 1, 1], [BLOCK as u32, 1, 1]);
                    let args: *const Args = &args;
                    launch(kernel, grid, block, BLOCK as u32 * 4, args.cast(), size_of::<Args>())
                }
            })
        });
        if let Err(message) = result {
            return format!("ERROR under {order:?}: {message}");
        }
        let wanted = expected(case.writes, &input);
        if let Some(i) = (0..out.len()).find(|&i| out[i] != wanted[i]) {
            return format!("WRONG VALUE under {order:?}: {} at {i}, not {}", out[i], wanted[i]);
        }
        let counts = case.file == "races.cu";
        if counts && kernel.ends_with("_fixed") && *counter as usize != BLOCKS * BLOCK {
            return format!("WRONG VALUE under {order:?}: the counter is {counter}");
        }
    }
    "CLEAN".to_owned()
}

#[test]
fn child() {
    if let Ok(kernel) = std::env::var(KERNEL) {
        println!("\nCHILD: {}", run_kernel(&kernel)); // the harness has not ended its line
    }
}

/// Everything that a child printed.
fn run_in_child(kernel: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(KERNEL, kernel)
        .output()
        .unwrap();
    format!(
        "{}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status
    )
}

fn is_as_seen(printed: &str, sees: Sees, file: &str) -> bool {
    let report = printed.contains("Sanitizer") || printed.contains("runtime error:");
    match sees {
        Nothing => printed.contains("CHILD: CLEAN") && !report,
        WrongValue => printed.contains("CHILD: WRONG VALUE") && !report,
        Error(message) => {
            let line = printed.lines().find(|line| line.starts_with("CHILD: ERROR"));
            let names =
                |l: &str| l.contains(message) && (l.contains(file) || l.contains("dynamic"));
            line.is_some_and(names) && !report
        }
        Crash => printed.contains("SIGSEGV"),
        Chance => printed.contains("CHILD: "),
        Report(message) => printed.contains(message) && printed.contains(file),
    }
}

#[test]
fn each_build_finds_what_it_must() {
    let mut wrong = Vec::new();
    for case in CASES {
        let sees = match sanitizer() {
            "address" => case.address,
            "thread" => case.thread,
            _ => case.plain,
        };
        let printed = run_in_child(&format!("planted_{}", case.name));
        if !is_as_seen(&printed, sees, case.file) {
            wrong.push(format!("{}: expected {sees:?}, printed:\n{printed}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n\n"));
}

#[test]
fn no_build_reports_the_fixed_twins() {
    for case in CASES {
        let printed = run_in_child(&format!("planted_{}_fixed", case.name));
        assert!(is_as_seen(&printed, Nothing, case.file), "{}:\n{printed}", case.name);
    }
}

#[test]
fn a_failed_launch_leaves_nothing_behind() {
    // Errors of every kind that leave fibers in the middle of a kernel, each followed by a good launch.
    let mut names = vec!["divergent_barrier", "early_exit", "deadlock", "copy_without_commit"];
    if sanitizer() == "none" {
        names.extend(["wild_pointer", "stack_overflow", "null_pointer", "static_shared_write"]);
    }
    for name in names {
        for _ in 0..3 {
            let failed = run_kernel(&format!("planted_{name}"));
            assert!(failed.starts_with("ERROR"), "{name}: {failed}");
            assert_eq!(run_kernel(&format!("planted_{name}_fixed")), "CLEAN", "after {name}");
        }
    }
}

#[test]
fn every_planted_kernel_is_in_the_table() {
    let planted = kernels().into_iter().filter(|kernel| kernel.name.starts_with("planted_"));
    assert_eq!(planted.count(), 2 * CASES.len());
}
