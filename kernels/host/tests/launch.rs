//! A launch: the checks before it, the orders of threads, the shared work of OS threads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use gradstone_host::{Blocks, Order, kernels, launch, with_blocks, with_order, with_workers};

/// `BlockSumArgs` of `probes/block_sum.cu`.
#[repr(C)]
struct BlockSum {
    values: *const f32,
    sums: *mut f32,
}

fn block_sum(blocks: usize, threads: usize) -> Vec<f32> {
    let values: Vec<f32> = (0..blocks * threads).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut sums = vec![0.0; blocks];
    let args = BlockSum { values: values.as_ptr(), sums: sums.as_mut_ptr() };
    run("probe_block_sum", [blocks as u32, 1, 1], [threads as u32, 1, 1], 0, &args).unwrap();
    for (block, sum) in sums.iter().enumerate() {
        let exact: f64 = values[block * threads..][..threads].iter().map(|&v| f64::from(v)).sum();
        assert!((f64::from(*sum) - exact).abs() < 1e-4, "block {block}: {sum} is not {exact}");
    }
    sums
}

fn run<T>(
    kernel: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    args: &T,
) -> Result<(), String> {
    // SAFETY: each test passes the kernel's own struct with pointers to vectors that outlive the call.
    unsafe { launch(kernel, grid, block, shared, std::ptr::from_ref(args).cast(), size_of::<T>()) }
}

#[test]
fn bits_are_equal_in_every_order_and_for_any_number_of_os_threads() {
    let expected = block_sum(7, 256);
    for order in Order::ALL {
        for workers in [1, 2, 5] {
            let sums = with_order(order, || with_workers(workers, || block_sum(7, 256)));
            assert_eq!(sums, expected, "{order:?}, {workers} workers");
        }
    }
}

#[test]
fn a_block_of_1024_threads_runs() {
    block_sum(3, 1024);
}

/// `IndicesArgs` of `probes/indices.cu`.
#[repr(C)]
struct Indices {
    visits: *mut u32,
    places: *mut [u32; 6],
}

#[test]
fn every_thread_of_every_block_runs_once_and_knows_its_place() {
    let (grid, block) = ([3u32, 4, 2], [5u32, 3, 7]);
    let threads = 3 * 4 * 2 * 5 * 3 * 7;
    for order in Order::ALL {
        let (mut visits, mut places) = (vec![0u32; threads], vec![[0u32; 6]; threads]);
        let args = Indices { visits: visits.as_mut_ptr(), places: places.as_mut_ptr() };
        with_order(order, || run("probe_indices", grid, block, 0, &args)).unwrap();
        assert!(visits.iter().all(|&v| v == 1), "{order:?}");
        for (i, place) in places.iter().enumerate() {
            let (i, g, b) = (i as u32, grid, block);
            let (thread, linear_block) = (i % (b[0] * b[1] * b[2]), i / (b[0] * b[1] * b[2]));
            let expected = [
                thread % b[0],
                thread / b[0] % b[1],
                thread / b[0] / b[1],
                linear_block % g[0],
                linear_block / g[0] % g[1],
                linear_block / g[0] / g[1],
            ];
            assert_eq!(*place, expected, "{order:?}, thread {i}");
        }
    }
}

#[test]
fn the_first_or_the_last_blocks_run_alone_and_where_they_would() {
    let (grid, block) = ([3u32, 4, 2], [4u32, 1, 1]);
    let cases = [
        (Blocks::All, 0..24),
        (Blocks::First(1), 0..1),
        (Blocks::First(24), 0..24),
        (Blocks::Last(5), 19..24),
    ];
    for order in Order::ALL {
        for (blocks, run_blocks) in cases.clone() {
            let (mut visits, mut places) = (vec![0u32; 96], vec![[0u32; 6]; 96]);
            let args = Indices { visits: visits.as_mut_ptr(), places: places.as_mut_ptr() };
            let launched = || run("probe_indices", grid, block, 0, &args);
            with_order(order, || with_blocks(blocks, launched)).unwrap();
            for (i, (visits, place)) in visits.iter().zip(&places).enumerate() {
                let of = i as u32 / 4;
                assert_eq!(
                    *visits,
                    u32::from(run_blocks.contains(&of)),
                    "{order:?} {blocks:?}, {i}"
                );
                if *visits > 0 {
                    assert_eq!(
                        place[3..],
                        [of % 3, of / 3 % 4, of / 12],
                        "{order:?} {blocks:?}, {i}"
                    );
                }
            }
        }
    }
}

#[test]
fn blocks_at_the_end_of_the_largest_grid_run() {
    let grid = [(1 << 31) - 1, 65535, 65535];
    let values = [1.0f32; 64];
    let mut sums = [0.0f32; 2];
    let before = u64::from(grid[0]) - 2;
    let args = BlockSum {
        values: values.as_ptr().wrapping_sub(before as usize * 32),
        sums: sums.as_mut_ptr().wrapping_sub(before as usize),
    };
    with_blocks(Blocks::Last(2), || run("probe_block_sum", grid, [32, 1, 1], 0, &args)).unwrap();
    assert_eq!(sums, [32.0; 2]);
}

#[test]
fn blocks_that_the_grid_does_not_have_are_refused() {
    let (values, mut sums) = ([1.0f32; 96], [0.0f32; 3]);
    let args = BlockSum { values: values.as_ptr(), sums: sums.as_mut_ptr() };
    let asked = |blocks| {
        with_blocks(blocks, || run("probe_block_sum", [3, 1, 1], [32, 1, 1], 0, &args)).unwrap_err()
    };
    for blocks in [Blocks::First(4), Blocks::Last(4), Blocks::Last(u64::MAX)] {
        assert!(asked(blocks).contains("the grid (3, 1, 1) has 3"), "{}", asked(blocks));
    }
    assert!(asked(Blocks::First(0)).contains("no blocks"));
    block_sum(3, 32);
}

#[test]
fn a_launch_outside_the_limits_is_refused_and_the_next_one_works() {
    let (values, mut sums) = ([1.0f32; 2048], [0.0f32; 1]);
    let args = BlockSum { values: values.as_ptr(), sums: sums.as_mut_ptr() };
    type Case = (&'static str, [u32; 3], [u32; 3], u32, &'static str);
    let cases: [Case; 9] = [
        ("no_such_kernel", [1; 3], [32, 1, 1], 0, "no kernel of this name"),
        ("probe_block_sum", [0, 1, 1], [32, 1, 1], 0, "grid (0, 1, 1)"),
        ("probe_block_sum", [1 << 31, 1, 1], [32, 1, 1], 0, "grid (2147483648, 1, 1)"),
        ("probe_block_sum", [1, 65536, 1], [32, 1, 1], 0, "grid (1, 65536, 1)"),
        ("probe_block_sum", [1, 1, 65536], [32, 1, 1], 0, "grid (1, 1, 65536)"),
        ("probe_block_sum", [1; 3], [32, 0, 1], 0, "block (32, 0, 1)"),
        ("probe_block_sum", [1; 3], [1, 1, 65], 0, "block (1, 1, 65)"),
        ("probe_block_sum", [1; 3], [1024, 2, 1], 0, "2048 threads"),
        ("probe_block_sum", [1; 3], [32, 1, 1], 227 * 1024 + 1, "dynamic shared memory"),
    ];
    for (kernel, grid, block, shared, says) in cases {
        let error = run(kernel, grid, block, shared, &args).unwrap_err();
        assert!(error.contains(says) && error.contains(kernel), "{error:?} should say {says:?}");
    }
    let error = run("probe_block_sum", [1; 3], [32, 1, 1], 0, &0u32).unwrap_err();
    assert!(error.contains("got 4 bytes of arguments, its struct has 16"), "{error}");
    assert!(run("probe\0", [1; 3], [32, 1, 1], 0, &args).is_err());
    block_sum(2, 64);
}

#[test]
fn the_table_tells_name_size_and_block() {
    let table = kernels();
    let probe = table.iter().find(|k| k.name == "probe_block_sum").unwrap();
    assert_eq!((probe.args_size, probe.max_threads), (16, 1024));
}
