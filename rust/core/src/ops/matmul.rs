//! `MatMul`: products of matrices with broadcast batch axes.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use mnnq_format::schema::{TableKind, mat_mul};
use mnnq_kernels::elementwise::Unary;
use mnnq_kernels::gemm_f32::{PackedB, PackedView, gemm_view_f32, scratch_len};
use mnnq_kernels::gemm_half::{PackedHalf, gemm_half, scratch_len as half_scratch_len};
use mnnq_kernels::parallel::Serial;
use mnnq_kernels::{Epilogue as KernelEpilogue, Residual};

use super::conv_weights::kernel_epilogue;
use super::epilogue::Epilogue;
use super::error::{OpError, OpResult};
use super::operator::{Facts, InferResult, Kernel, Operator, PrepareContext, StepIo};
use super::registry::OpSource;
use super::support::kernels;
use crate::runtime::config::PrecisionMode;
use crate::tensor::{DType, Shape, Tensor, TensorDesc};

/// `MatMul(a [.., m, k], b [.., k, n][, bias [n]])`; either matrix may be given transposed; vectors as in NumPy.
pub(super) struct MatMul {
    transpose_a: bool,
    transpose_b: bool,
    /// Input 2 is a bias.
    has_bias: bool,
    /// The packed matrices of a constant b, made at the first plan.
    packed: Mutex<Option<(Tensor, Arc<Vec<Matrix>>)>>,
    /// A constant b is rounded to 16-bit floats and multiplied so.
    half: bool,
}

/// A packed matrix b.
enum Matrix {
    Float(PackedB),
    Half(PackedHalf),
}

/// The same, borrowed: from the constants, or packed for this run.
enum Operand<'a> {
    Float(PackedView<'a>),
    Half(&'a PackedHalf),
}

impl Matrix {
    fn operand(&self) -> Operand<'_> {
        match self {
            Self::Float(matrix) => Operand::Float(matrix.view()),
            Self::Half(matrix) => Operand::Half(matrix),
        }
    }
}

impl MatMul {
    pub(super) fn new(source: &OpSource<'_>) -> OpResult<Self> {
        source.expect_outputs(1)?;
        let table = source.param(TableKind::MatMul)?;
        Ok(Self {
            transpose_a: table.get(mat_mul::TRANSPOSE_A),
            transpose_b: table.get(mat_mul::TRANSPOSE_B),
            has_bias: source.inputs > 2,
            packed: Mutex::default(),
            half: source.options.precision == PrecisionMode::Low && kernels().gemm_half.is_native(),
        })
    }

    fn dims(&self, a: &Shape, b: &Shape) -> OpResult<Dims> {
        if a.rank() == 0 || b.rank() == 0 {
            let input = usize::from(a.rank() != 0);
            return Err(OpError::shape(input, Shape::SCALAR, "at least one axis"));
        }
        let matrix = |s: &Shape, vector: [usize; 2], transposed: bool| {
            let [rows, columns] = match s.dims() {
                [_] => vector,
                dims => [dims[dims.len() - 2], dims[dims.len() - 1]],
            };
            if transposed && s.rank() > 1 { [columns, rows] } else { [rows, columns] }
        };
        let [m, k] = matrix(a, [1, a[0]], self.transpose_a);
        let [k_b, n] = matrix(b, [b[0], 1], self.transpose_b);
        if k != k_b {
            return Err(OpError::shape(1, *b, format!("a matrix with {k} rows, as {a} has columns")));
        }
        let batch_a = Shape::new(&a.dims()[..a.rank().saturating_sub(2)])?;
        let batch_b = Shape::new(&b.dims()[..b.rank().saturating_sub(2)])?;
        Ok(Dims { m, k, n, batch: batch_a.broadcast(&batch_b)?, batch_a, batch_b })
    }
}

#[derive(Debug, Clone, Copy)]
struct Dims {
    m: usize,
    k: usize,
    n: usize,
    batch: Shape,
    batch_a: Shape,
    batch_b: Shape,
}

impl Dims {
    /// For each product, which matrix of an operand it uses.
    fn order(&self, operand: &Shape) -> Vec<usize> {
        let (own, lead) = (operand.strides(), self.batch.rank() - operand.rank());
        let all = self.batch.strides();
        let index = |product: usize| {
            (0..operand.rank())
                .filter(|&axis| operand[axis] != 1)
                .map(|axis| product / all[axis + lead] % self.batch[axis + lead].max(1) * own[axis])
                .sum()
        };
        (0..self.batch.count()).map(index).collect()
    }
}

impl Operator for MatMul {
    fn infer(&self, inputs: &Facts<'_>) -> InferResult {
        let (a, b) = (inputs.typed(0, DType::F32)?, inputs.typed(1, DType::F32)?);
        let dims = self.dims(&a.shape, &b.shape)?;
        if let Some(bias) = inputs.get(2).filter(|_| self.has_bias)
            && (bias.desc.shape.count() != dims.n || bias.desc.dtype != DType::F32)
        {
            return Err(OpError::shape(2, bias.desc.shape, format!("{} floats", dims.n)).into());
        }
        let mut shape = dims.batch.dims().to_vec();
        if a.shape.rank() > 1 {
            shape.push(dims.m);
        }
        if b.shape.rank() > 1 {
            shape.push(dims.n);
        }
        Ok(vec![TensorDesc::new(DType::F32, Shape::new(&shape)?)])
    }

    fn accepts_epilogue(&self) -> bool {
        true
    }

    fn prepare(&self, context: &PrepareContext<'_>) -> OpResult<Box<dyn Kernel>> {
        let (a, b) = (context.inputs.shape(0)?, context.inputs.shape(1)?);
        let mut dims = self.dims(&a, &b)?;
        let constant = context.inputs.get(1).and_then(|fact| fact.value);
        let packed = constant.map(|tensor| self.pack_constant(tensor, &dims)).transpose()?;
        // Rows of all matrices of a are one matrix if b is one matrix.
        if dims.batch_b.count() == 1 && !self.transpose_a {
            dims.m *= dims.batch_a.count();
            dims.batch_a = Shape::SCALAR;
            dims.batch_b = Shape::SCALAR;
            dims.batch = Shape::SCALAR;
        }
        let (activation, residual, rest) = kernel_epilogue(context.epilogue);
        let has_bias = self.has_bias && context.inputs.get(2).is_some();
        let (order_a, order_b) = (dims.order(&dims.batch_a), dims.order(&dims.batch_b));
        Ok(Box::new(MatMulKernel {
            dims,
            transpose_a: self.transpose_a && a.rank() > 1,
            transpose_b: self.transpose_b && b.rank() > 1,
            order_a,
            order_b,
            packed,
            has_bias,
            half: self.half && constant.is_some(),
            activation,
            residual,
            rest,
            threads: context.options.threads,
            words: context.epilogue.describe(),
        }))
    }
}

impl MatMul {
    fn pack_constant(&self, tensor: &Tensor, dims: &Dims) -> OpResult<Arc<Vec<Matrix>>> {
        let mut cache = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, packed)) = &*cache
            && std::ptr::eq(of.bytes().as_ptr(), tensor.bytes().as_ptr())
        {
            return Ok(packed.clone());
        }
        let size = (dims.k * dims.n).max(1);
        let transposed = self.transpose_b && tensor.desc().shape.rank() > 1;
        let pack = |matrix: &[f32]| pack_matrix(matrix, dims, transposed, self.half);
        let matrices: Vec<Matrix> =
            tensor.data::<f32>().chunks_exact(size).map(pack).collect::<OpResult<_>>()?;
        let packed = Arc::new(matrices);
        *cache = Some((tensor.clone(), packed.clone()));
        Ok(packed)
    }
}

fn pack_matrix(matrix: &[f32], dims: &Dims, transposed: bool, half: bool) -> OpResult<Matrix> {
    let (float, kernel) = (&kernels().gemm_f32, &kernels().gemm_half);
    let (k, n) = (dims.k, dims.n);
    Ok(match (half, transposed) {
        (false, true) => Matrix::Float(PackedB::from_columns(float, matrix, k, n, k)?),
        (false, false) => Matrix::Float(PackedB::from_rows(float, matrix, k, n, n)?),
        (true, true) => Matrix::Half(PackedHalf::from_columns(kernel, matrix, k, n, k)?),
        (true, false) => Matrix::Half(PackedHalf::from_rows(kernel, matrix, k, n, n)?),
    })
}

struct MatMulKernel {
    dims: Dims,
    transpose_a: bool,
    transpose_b: bool,
    /// Per product, the matrix of a and of b.
    order_a: Vec<usize>,
    order_b: Vec<usize>,
    packed: Option<Arc<Vec<Matrix>>>,
    has_bias: bool,
    /// The packed matrices are 16-bit floats.
    half: bool,
    activation: Unary,
    residual: Option<(usize, Unary)>,
    rest: Epilogue,
    threads: usize,
    words: String,
}

impl MatMulKernel {
    /// Floats of scratch of one thread: a transposed copy of a matrix of a, a packed matrix of b, and the kernel's.
    fn thread_floats(&self) -> [usize; 3] {
        let copy = if self.transpose_a { self.dims.m * self.dims.k } else { 0 };
        let fresh = PackedView::len(&kernels().gemm_f32, self.dims.k, self.dims.n);
        // Each part starts at a cache line.
        [
            copy.next_multiple_of(16),
            if self.packed.is_some() { 0 } else { fresh.next_multiple_of(16) },
            if self.half { half_scratch_len() } else { scratch_len() },
        ]
    }

    /// Scratch of all threads: as many products as threads may run at once, or one with all threads on it.
    fn floats(&self) -> usize {
        let [copy, fresh, kernel] = self.thread_floats();
        self.threads * (copy + fresh + kernel)
    }
}

impl Kernel for MatMulKernel {
    fn label(&self) -> Cow<'static, str> {
        let packing = if self.packed.is_some() { "" } else { ", packed in every run" };
        let (format, name) = if self.half {
            (kernels().gemm_half.format(), kernels().gemm_half.name())
        } else {
            ("f32", kernels().gemm_f32.name())
        };
        format!("matmul {format} {name}{packing}{}", self.words).into()
    }

    fn scratch(&self) -> usize {
        self.floats() * size_of::<f32>()
    }

    fn multiply_adds(&self) -> u64 {
        let Dims { m, k, n, .. } = self.dims;
        [m, k, n].iter().fold(self.order_a.len() as u64, |product, &n| product.saturating_mul(n as u64))
    }

    fn run(&self, io: &mut StepIo<'_, '_>) -> OpResult<()> {
        let Dims { m, k, n, .. } = self.dims;
        let (a, b) = (io.input(0).data::<f32>(), io.input(1).data::<f32>());
        let bias = self.has_bias.then(|| io.input(2).data::<f32>());
        let residual = self.residual.map(|(position, then)| (io.input(position).data::<f32>(), then));
        let products = self.order_a.len();
        let out = io.outputs[0].data::<f32>();
        let scratch: &mut [f32] = super::support::typed(io.scratch);
        let size = m * n;
        if size == 0 || products == 0 {
            return Ok(());
        }
        let (float, half) = (&kernels().gemm_f32, &kernels().gemm_half);
        let failed: Mutex<Option<OpError>> = Mutex::new(None);
        let product = |index: usize, out: &mut [f32], scratch: &mut [f32], wide: bool| -> OpResult<()> {
            let a = &a[self.order_a[index] * m * k..][..m * k];
            let [copy, fresh, _] = self.thread_floats();
            let (copy, scratch) = scratch.split_at_mut(copy);
            let (fresh, scratch) = scratch.split_at_mut(fresh);
            let matrix = match &self.packed {
                Some(packed) => packed[self.order_b[index]].operand(),
                None => {
                    let b = &b[self.order_b[index] * k * n..][..k * n];
                    Operand::Float(if self.transpose_b {
                        PackedView::from_columns(float, b, [k, n], k, fresh)?
                    } else {
                        PackedView::from_rows(float, b, [k, n], n, fresh)?
                    })
                }
            };
            let a = if self.transpose_a {
                let copy = &mut copy[..m * k];
                mnnq_kernels::transpose::transpose(1, k, m, a, copy)?;
                &*copy
            } else {
                a
            };
            let residual = residual.map(|(data, then)| Residual {
                data: &data[index * size..][..size],
                row_stride: n,
                then,
            });
            let epilogue = KernelEpilogue { scale: None, bias, activation: self.activation, residual };
            let executor: &dyn mnnq_kernels::parallel::Executor = if wide { io.parallel } else { &Serial };
            match matrix {
                Operand::Float(b) => gemm_view_f32(float, m, a, k, b, &epilogue, out, n, scratch, executor)?,
                Operand::Half(b) => gemm_half(half, m, a, k, b, &epilogue, out, n, scratch, executor)?,
            }
            Ok(())
        };
        // Many small products: one per thread. Few: all threads on each.
        if products >= 2 * io.parallel.threads() {
            let len = self.thread_floats().iter().sum();
            io.parallel.for_each_chunk_with(out, size, scratch, len, |index, out, scratch| {
                if let Err(error) = product(index, out, scratch, false) {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            });
        } else {
            for (index, out) in out.chunks_mut(size).enumerate() {
                product(index, out, scratch, true)?;
            }
        }
        if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        self.rest.apply_all(io);
        Ok(())
    }
}
