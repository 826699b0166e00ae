//! Transposes of matrices, which is what changes between NCHW and NHWC are.

use crate::error::KernelError;

const FAMILY: &str = "transpose";

/// Side of a block: a block of the input and of the output fit the first-level cache together.
const BLOCK: usize = 16;

/// `out[b, c, r] = x[b, r, c]`.
///
/// NCHW to NHWC is `rows = channels, columns = height * width`; NHWC to NCHW is `rows = height * width,
/// columns = channels`.
///
/// # Shapes
/// `x`: `[batch, rows, columns]`, `out`: `[batch, columns, rows]`, both contiguous.
///
/// # Errors
/// [`KernelError::Size`] if a length does not fit.
pub fn transpose<T: Copy>(
    batch: usize,
    rows: usize,
    columns: usize,
    x: &[T],
    out: &mut [T],
) -> Result<(), KernelError> {
    let overflow = KernelError::Value { kernel: FAMILY, what: "the tensor is larger than the address space" };
    let matrix = rows.checked_mul(columns).ok_or(overflow.clone())?;
    let wanted = matrix.checked_mul(batch).ok_or(overflow)?;
    KernelError::check(FAMILY, "length of the input", x.len(), wanted)?;
    KernelError::check(FAMILY, "length of the output", out.len(), wanted)?;
    if wanted == 0 {
        return Ok(());
    }
    for (x, out) in x.chunks_exact(matrix).zip(out.chunks_exact_mut(matrix)) {
        match (rows, columns) {
            (1, _) | (_, 1) => out.copy_from_slice(x),
            // Images with two to four channels.
            (2, _) => interleave::<T, 2>(x, columns, out),
            (3, _) => interleave::<T, 3>(x, columns, out),
            (4, _) => interleave::<T, 4>(x, columns, out),
            _ => blocks(x, rows, columns, out),
        }
    }
    Ok(())
}

/// `R` rows to `R` interleaved values per column.
fn interleave<T: Copy, const R: usize>(x: &[T], columns: usize, out: &mut [T]) {
    let rows: [&[T]; R] = std::array::from_fn(|r| &x[r * columns..][..columns]);
    for (column, pixel) in out.chunks_exact_mut(R).enumerate() {
        for r in 0..R {
            pixel[r] = rows[r][column];
        }
    }
}

fn blocks<T: Copy>(x: &[T], rows: usize, columns: usize, out: &mut [T]) {
    for first_row in (0..rows).step_by(BLOCK) {
        let height = BLOCK.min(rows - first_row);
        for first_column in (0..columns).step_by(BLOCK) {
            let width = BLOCK.min(columns - first_column);
            if height == BLOCK && width == BLOCK {
                block(
                    &x[first_row * columns + first_column..],
                    columns,
                    &mut out[first_column * rows + first_row..],
                    rows,
                );
                continue;
            }
            for column in first_column..first_column + width {
                let line = &mut out[column * rows + first_row..][..height];
                for (offset, to) in line.iter_mut().enumerate() {
                    *to = x[(first_row + offset) * columns + column];
                }
            }
        }
    }
}

/// A full block, by way of the stack, so that every access to memory is a whole line.
fn block<T: Copy>(x: &[T], x_stride: usize, out: &mut [T], out_stride: usize) {
    let mut buffer = [[x[0]; BLOCK]; BLOCK];
    for r in 0..BLOCK {
        let line = &x[r * x_stride..][..BLOCK];
        for c in 0..BLOCK {
            buffer[c][r] = line[c];
        }
    }
    for (c, line) in buffer.iter().enumerate() {
        out[c * out_stride..][..BLOCK].copy_from_slice(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Guarded, SIZES};

    #[test]
    fn every_shape_is_transposed() {
        for &rows in SIZES {
            for &columns in SIZES {
                let batch = 1 + rows % 2;
                let x: Vec<u32> = (0..(batch * rows * columns) as u32).collect();
                let mut out = Guarded::new(x.len(), 0, u32::MAX);
                transpose(batch, rows, columns, &x, out.get_mut()).unwrap();
                out.check();
                for b in 0..batch {
                    for r in 0..rows {
                        for c in 0..columns {
                            let (from, to) = ((b * rows + r) * columns + c, (b * columns + c) * rows + r);
                            assert_eq!(out.get()[to], x[from]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_wrong_length_is_refused() {
        assert!(transpose(1, 2, 3, &[0_u8; 6], &mut [0; 5]).is_err());
        assert!(transpose(usize::MAX, 2, 3, &[0_u8; 6], &mut [0; 6]).is_err());
    }
}
