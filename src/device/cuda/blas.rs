//! Matrix products by cuBLASLt, which is found at run time and named in an error where it is missing.
//!
//! One workspace of fixed size, one algorithm a shape: the library's first suggestion, kept for the life of the device.
//! The suggestion depends on all dimensions, the batch and the alignment, so the bits of a row may still depend on how
//! many rows are multiplied; for one shape they do not vary.

use super::code::Code;
use super::context::Context;
use super::functions::{Missing, function_table};
use super::memory::Memory;
use crate::device::engine::Product;
use crate::dtype::DType;
use crate::error::{Error, Result};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t,
    cudaDataType, cudaStream_t,
};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

function_table! {
    /// The functions of libcublasLt that this library calls.
    BlasFunctions from sys, returning cublasStatus_t;
    required {
    cublasLtCreate(handle: *mut cublasLtHandle_t);
    cublasLtDestroy(handle: cublasLtHandle_t);
    cublasLtMatmulDescCreate(
        desc: *mut cublasLtMatmulDesc_t, compute: cublasComputeType_t, scale: cudaDataType);
    cublasLtMatmulDescDestroy(desc: cublasLtMatmulDesc_t);
    cublasLtMatmulDescSetAttribute(
        desc: cublasLtMatmulDesc_t, attribute: cublasLtMatmulDescAttributes_t,
        value: *const c_void, bytes: usize);
    cublasLtMatrixLayoutCreate(
        layout: *mut cublasLtMatrixLayout_t, dtype: cudaDataType, rows: u64, cols: u64, ld: i64);
    cublasLtMatrixLayoutDestroy(layout: cublasLtMatrixLayout_t);
    cublasLtMatrixLayoutSetAttribute(
        layout: cublasLtMatrixLayout_t, attribute: cublasLtMatrixLayoutAttribute_t,
        value: *const c_void, bytes: usize);
    cublasLtMatmulPreferenceCreate(preference: *mut cublasLtMatmulPreference_t);
    cublasLtMatmulPreferenceDestroy(preference: cublasLtMatmulPreference_t);
    cublasLtMatmulPreferenceSetAttribute(
        preference: cublasLtMatmulPreference_t, attribute: cublasLtMatmulPreferenceAttributes_t,
        value: *const c_void, bytes: usize);
    cublasLtMatmulAlgoGetHeuristic(
        handle: cublasLtHandle_t, desc: cublasLtMatmulDesc_t, a: cublasLtMatrixLayout_t,
        b: cublasLtMatrixLayout_t, c: cublasLtMatrixLayout_t, d: cublasLtMatrixLayout_t,
        preference: cublasLtMatmulPreference_t, wanted: c_int,
        results: *mut cublasLtMatmulHeuristicResult_t, found: *mut c_int);
    cublasLtMatmul(
        handle: cublasLtHandle_t, desc: cublasLtMatmulDesc_t, alpha: *const c_void,
        a: *const c_void, a_layout: cublasLtMatrixLayout_t, b: *const c_void,
        b_layout: cublasLtMatrixLayout_t, beta: *const c_void, c: *const c_void,
        c_layout: cublasLtMatrixLayout_t, d: *mut c_void, d_layout: cublasLtMatrixLayout_t,
        algorithm: *const cublasLtMatmulAlgo_t, workspace: *mut c_void, workspace_bytes: usize,
        stream: cudaStream_t);
    }
    optional {

    }
}

/// What NVIDIA recommends for Hopper; enough for split sums on older GPUs.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A product as a column-major library sees it: `outᵀ = bᵀ aᵀ`, since row-major memory is its transpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    dtype: DType,
    out_dtype: DType,
    /// The library's first operand is our second.
    first_transposed: bool,
    second_transposed: bool,
    m: usize,
    n: usize,
    k: usize,
    batch: usize,
    /// Bytes that each address is a multiple of, first operand, second, result.
    alignment: [u32; 3],
}

impl Shape {
    fn of(product: &Product) -> Shape {
        // Beyond 256 bytes it makes no difference to an algorithm.
        let alignment = |address: u64| 1 << address.trailing_zeros().min(8);
        Shape {
            dtype: product.a.dtype,
            out_dtype: product.out_dtype,
            first_transposed: product.b.transposed,
            second_transposed: product.a.transposed,
            m: product.n,
            n: product.m,
            k: product.k,
            batch: product.batch,
            alignment: [product.b.address, product.a.address, product.out].map(alignment),
        }
    }

    /// Rows and columns of the three matrices as they are stored, column-major without gaps.
    fn stored(&self) -> [(usize, usize); 3] {
        let turned = |rows, cols, transposed| if transposed { (cols, rows) } else { (rows, cols) };
        [
            turned(self.m, self.k, self.first_transposed),
            turned(self.k, self.n, self.second_transposed),
            (self.m, self.n),
        ]
    }
}

/// What cuBLASLt keeps for one shape.
struct Plan {
    library: Arc<BlasFunctions>,
    desc: cublasLtMatmulDesc_t,
    layouts: [cublasLtMatrixLayout_t; 3],
    algorithm: cublasLtMatmulAlgo_t,
}

/// cuBLASLt on one device.
pub(super) struct Blas {
    context: Arc<Context>,
    memory: Arc<Memory>,
    library: Arc<BlasFunctions>,
    handle: cublasLtHandle_t,
    workspace: u64,
    compute: cublasComputeType_t,
    plans: Mutex<HashMap<Shape, Arc<Plan>>>,
}

// SAFETY: descriptors may be used from any thread, and are not changed once made.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}
// SAFETY: cuBLASLt's handles may be used from any thread; a plan is not changed once made.
unsafe impl Send for Blas {}
// SAFETY: as above; the map is behind a mutex, and the workspace is used in stream order.
unsafe impl Sync for Blas {}

/// The names that cuBLASLt is looked for under: only `given` (a file, or a folder) where it is given.
fn library_names(given: Option<&Path>) -> Vec<PathBuf> {
    let names: [&str; 2] = if cfg!(windows) {
        ["cublasLt64_13.dll", "cublasLt64_12.dll"]
    } else {
        ["libcublasLt.so.13", "libcublasLt.so.12"]
    };
    let inside = |folder: PathBuf| names.map(|name| folder.join(name));
    match given {
        Some(folder) if folder.is_dir() => inside(folder.to_path_buf()).to_vec(),
        Some(file) => vec![file.to_path_buf()],
        None => {
            let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
            let folders = homes.map(PathBuf::from).chain([PathBuf::from("/usr/local/cuda")]);
            names
                .map(PathBuf::from)
                .into_iter()
                .chain(folders.flat_map(|home| inside(home.join("lib64"))))
                .collect()
        }
    }
}

fn load(given: Option<&Path>) -> std::result::Result<BlasFunctions, String> {
    BlasFunctions::load(&library_names(given)).map_err(|missing| match missing {
        Missing::Function { name, library } => format!("{} has no {name}", library.display()),
        Missing::Library { tried } => {
            let tried: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
            format!(
                "cuBLASLt was not found (tried {})\n\
                 install CUDA's cuBLAS, or name its library or folder in GRADSTONE_CUBLASLT \
                 (in a Python environment: nvidia/cu13/lib)",
                tried.join(", ")
            )
        }
    })
}

/// Where cuBLASLt is, without starting it.
///
/// # Errors
/// What was tried, in words.
pub(super) fn locate(given: Option<&Path>) -> std::result::Result<PathBuf, String> {
    load(given).map(|library| library.path)
}

fn data_type(dtype: DType) -> cudaDataType {
    match dtype {
        DType::Bf16 => cudaDataType::CUDA_R_16BF,
        DType::F16 => cudaDataType::CUDA_R_16F,
        _ => cudaDataType::CUDA_R_32F,
    }
}

fn failed(call: &str) -> impl Fn(Code) -> Error {
    move |code| Error::state(format!("{call}: {}", code.of_cublas()))
}

fn attribute<T>(value: &T) -> (*const c_void, usize) {
    ((&raw const *value).cast(), size_of::<T>())
}

impl Blas {
    /// Starts cuBLASLt, with its workspace; the error says why it cannot be used.
    pub(super) fn new(
        context: &Arc<Context>,
        memory: &Arc<Memory>,
        given: Option<&Path>,
        tf32: bool,
    ) -> std::result::Result<Blas, String> {
        let library = Arc::new(load(given)?);
        let text = |error: Error| error.to_string();
        let _current = context.enter().map_err(text)?;
        let mut handle = null_mut();
        // SAFETY: the result goes to a local; the context is current.
        unsafe { library.cublasLtCreate(&mut handle) }.map_err(|code| {
            format!("cublasLtCreate of {}: {}", library.path.display(), code.of_cublas())
        })?;
        let compute = if tf32 {
            cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
        } else {
            cublasComputeType_t::CUBLAS_COMPUTE_32F
        };
        let (context, memory) = (Arc::clone(context), Arc::clone(memory));
        let plans = Mutex::default();
        let mut blas = Blas { context, memory, library, handle, workspace: 0, compute, plans };
        blas.workspace = blas.memory.allocate(WORKSPACE_BYTES).map_err(text)?;
        Ok(blas)
    }

    /// `out = a · b`, or added to `out`.
    ///
    /// # Safety
    /// The addresses hold what the dimensions say, none of which is 0.
    pub(super) unsafe fn product(&self, product: &Product) -> Result<()> {
        let plan = self.plan(Shape::of(product))?;
        let _current = self.context.enter()?;
        let (alpha, beta) = (1f32, if product.accumulate { 1f32 } else { 0f32 });
        let [first, second, out] = plan.layouts;
        // SAFETY: the caller's promise for the operands; descriptions, algorithm and workspace belong to this handle.
        let started = unsafe {
            self.library.cublasLtMatmul(
                self.handle,
                plan.desc,
                attribute(&alpha).0,
                product.b.address as *const c_void,
                first,
                product.a.address as *const c_void,
                second,
                attribute(&beta).0,
                product.out as *const c_void,
                out,
                product.out as *mut c_void,
                out,
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.context.stream.cast(),
            )
        };
        started.map_err(failed("cublasLtMatmul"))
    }

    fn plan(&self, shape: Shape) -> Result<Arc<Plan>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&shape) {
            return Ok(Arc::clone(plan));
        }
        let _current = self.context.enter()?;
        let plan = Arc::new(self.make(&shape)?);
        plans.insert(shape, Arc::clone(&plan));
        Ok(plan)
    }

    fn make(&self, shape: &Shape) -> Result<Plan> {
        use cublasLtMatmulDescAttributes_t::*;
        use cublasLtMatrixLayoutAttribute_t::*;
        let library = &self.library;
        let mut plan = Plan {
            library: Arc::clone(library),
            desc: null_mut(),
            layouts: [null_mut(); 3],
            algorithm: cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        let f32_type = cudaDataType::CUDA_R_32F;
        let compute = match shape.dtype {
            DType::F32 => self.compute,
            _ => cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let batch = i32::try_from(shape.batch)
            .map_err(|_| Error::invalid(format!("{} products at once", shape.batch)))?;
        // SAFETY: results go to the plan, attributes are read from locals of the length that is passed.
        unsafe {
            library
                .cublasLtMatmulDescCreate(&mut plan.desc, compute, f32_type)
                .map_err(failed("cublasLtMatmulDescCreate"))?;
            let transposed = [
                (CUBLASLT_MATMUL_DESC_TRANSA, shape.first_transposed),
                (CUBLASLT_MATMUL_DESC_TRANSB, shape.second_transposed),
            ];
            for (which, transposed) in transposed {
                // A local, not a temporary: the pointer outlives the statement.
                let transposed = i32::from(transposed);
                let (value, bytes) = attribute(&transposed);
                library
                    .cublasLtMatmulDescSetAttribute(plan.desc, which, value, bytes)
                    .map_err(failed("cublasLtMatmulDescSetAttribute"))?;
            }
            let dtypes = [shape.dtype, shape.dtype, shape.out_dtype].map(data_type);
            for ((layout, dtype), (rows, cols)) in
                plan.layouts.iter_mut().zip(dtypes).zip(shape.stored())
            {
                library
                    .cublasLtMatrixLayoutCreate(
                        layout,
                        dtype,
                        rows as u64,
                        cols as u64,
                        rows as i64,
                    )
                    .map_err(failed("cublasLtMatrixLayoutCreate"))?;
                let stride = (rows * cols) as i64;
                for (which, (value, bytes)) in [
                    (CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, attribute(&batch)),
                    (CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, attribute(&stride)),
                ] {
                    library
                        .cublasLtMatrixLayoutSetAttribute(*layout, which, value, bytes)
                        .map_err(failed("cublasLtMatrixLayoutSetAttribute"))?;
                }
            }
        }
        plan.algorithm = self.choose(&plan, shape)?;
        Ok(plan)
    }

    /// The library's first suggestion that fits the workspace.
    fn choose(&self, plan: &Plan, shape: &Shape) -> Result<cublasLtMatmulAlgo_t> {
        use cublasLtMatmulPreferenceAttributes_t::*;
        let library = &self.library;
        let mut preference = null_mut();
        // SAFETY: the result goes to a local.
        unsafe { library.cublasLtMatmulPreferenceCreate(&mut preference) }
            .map_err(failed("cublasLtMatmulPreferenceCreate"))?;
        let [a, b, d] = &shape.alignment;
        let settings = [
            (CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, attribute(&WORKSPACE_BYTES)),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, attribute(a)),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, attribute(b)),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, attribute(d)),
            (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, attribute(d)),
        ];
        let mut result = MaybeUninit::<cublasLtMatmulHeuristicResult_t>::zeroed();
        let mut found = 0;
        let [first, second, out] = plan.layouts;
        // SAFETY: attributes have the length that is passed; there is room for the one result that is asked for.
        let asked = unsafe {
            let set = settings.into_iter().try_for_each(|(which, (value, bytes))| {
                library.cublasLtMatmulPreferenceSetAttribute(preference, which, value, bytes)
            });
            let asked = set.and_then(|()| {
                library.cublasLtMatmulAlgoGetHeuristic(
                    self.handle,
                    plan.desc,
                    first,
                    second,
                    out,
                    out,
                    preference,
                    1,
                    result.as_mut_ptr(),
                    &mut found,
                )
            });
            let _ = library.cublasLtMatmulPreferenceDestroy(preference);
            asked
        };
        asked.map_err(failed("cublasLtMatmulAlgoGetHeuristic"))?;
        if found < 1 {
            return Err(Error::unsupported(format!("cuBLASLt has no algorithm for {shape:?}")));
        }
        // SAFETY: one result was written, and an algorithm is plain numbers.
        Ok(unsafe { (&raw const (*result.as_ptr()).algo).read() })
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by the library and used by nothing else; null where making it failed.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = self.library.cublasLtMatrixLayoutDestroy(layout);
            }
            if !self.desc.is_null() {
                let _ = self.library.cublasLtMatmulDescDestroy(self.desc);
            }
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        let _ = self.context.wait();
        if let Some(_current) = self.context.enter_to_release() {
            // SAFETY: made in `new`; nothing runs any more.
            let _ = unsafe { self.library.cublasLtDestroy(self.handle) };
        }
        if self.workspace != 0 {
            // SAFETY: allocated in `new`, used by products alone.
            unsafe { self.memory.release(self.workspace, WORKSPACE_BYTES) };
        }
    }
}
