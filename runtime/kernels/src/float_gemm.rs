//! A safe door to the `gemm` crate: one f32 matrix product with strides. It knows nothing of layers or weights;
//! training and importance statistics multiply through it.

use crate::KernelError;

/// Strides of a matrix in elements: from one row to the next, and from one column to the next.
pub type Strides = (usize, usize);

/// `c[m, n] = alpha · a[m, k] · b[k, n] + beta · c[m, n]`, with `c` row-major and dense.
///
/// `a` and `b` are read through strides `(row, column)`, so a transposed operand is its strides swapped and
/// needs no copy. When `beta` is zero `c` is not read, so its old content may be anything, NaN included.
/// `threads` of 0 or 1 stays on the calling thread; more runs on the global rayon pool.
///
/// # Errors
/// [`KernelError::OperandTooShort`] when a slice is shorter than its shape and strides reach.
#[expect(clippy::too_many_arguments, reason = "the argument list of a BLAS product, in its usual order")]
pub fn gemm_f32(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: &[f32],
    a_strides: Strides,
    b: &[f32],
    b_strides: Strides,
    beta: f32,
    c: &mut [f32],
    threads: usize,
) -> Result<(), KernelError> {
    gemm_f32_into(m, n, k, alpha, a, a_strides, b, b_strides, beta, c, n, threads)
}

/// As [`gemm_f32`], into columns of a wider matrix: rows of `c` begin `c_row_stride` elements apart.
///
/// # Errors
/// [`KernelError::OperandTooShort`] when a slice is shorter than its shape and strides reach.
///
/// # Panics
/// When rows of `c` would overlap, which is a fault of the caller.
#[expect(clippy::too_many_arguments, reason = "the argument list of a BLAS product, in its usual order")]
pub fn gemm_f32_into(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: &[f32],
    a_strides: Strides,
    b: &[f32],
    b_strides: Strides,
    beta: f32,
    c: &mut [f32],
    c_row_stride: usize,
    threads: usize,
) -> Result<(), KernelError> {
    assert!(c_row_stride >= n, "rows of c overlap: {n} columns, {c_row_stride} apart");
    reaches("a", a.len(), m, k, a_strides)?;
    reaches("b", b.len(), k, n, b_strides)?;
    reaches("c", c.len(), m, n, (c_row_stride, 1))?;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let read_c = beta != 0.0;
    if k == 0 {
        for row in c.chunks_mut(c_row_stride).take(m) {
            for value in &mut row[..n] {
                *value = if read_c { *value * beta } else { 0.0 };
            }
        }
        return Ok(());
    }
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: `reaches` proved that every index `row * row_stride + column * column_stride` of the three shapes
    // lies inside its slice (so each stride also fits an isize), and `c` is borrowed exclusively and overlaps
    // neither operand.
    #[allow(unsafe_code, reason = "the gemm crate takes raw pointers")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            c_row_stride as isize,
            read_c,
            a.as_ptr(),
            a_strides.1 as isize,
            a_strides.0 as isize,
            b.as_ptr(),
            b_strides.1 as isize,
            b_strides.0 as isize,
            beta,  // the crate's `alpha` scales the destination,
            alpha, // and its `beta` the product.
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}

/// Proves that `[rows, columns]` under `strides` stays inside a slice of `len` elements.
fn reaches(
    operand: &'static str,
    len: usize,
    rows: usize,
    columns: usize,
    strides: Strides,
) -> Result<(), KernelError> {
    if rows == 0 || columns == 0 {
        return Ok(());
    }
    let needed = (rows - 1)
        .checked_mul(strides.0)
        .zip((columns - 1).checked_mul(strides.1))
        .and_then(|(down, across)| down.checked_add(across))
        .and_then(|last| last.checked_add(1));
    match needed {
        Some(needed) if needed <= len => Ok(()),
        _ => Err(KernelError::OperandTooShort { operand, rows, columns, strides, len }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn naive(
        m: usize,
        n: usize,
        k: usize,
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
    ) -> Vec<f32> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|p| f64::from(a(i, p)) * f64::from(b(p, j))).sum::<f64>() as f32;
            }
        }
        c
    }

    #[test]
    fn equals_the_naive_product_under_all_strides_and_scales() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 33, 65), (96, 64, 40)] {
            let a: Vec<f32> = (0..m * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            let b: Vec<f32> = (0..k * n).map(|i| ((i * 53 % 97) as f32 - 48.0) / 48.0).collect();
            for threads in [1, 2] {
                for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
                    let sa = if ta { (1, m) } else { (k, 1) };
                    let sb = if tb { (1, k) } else { (n, 1) };
                    let expected = naive(m, n, k, |i, p| a[i * sa.0 + p * sa.1], |p, j| b[p * sb.0 + j * sb.1]);
                    let mut c = vec![f32::NAN; m * n];
                    gemm_f32(m, n, k, 1.0, &a, sa, &b, sb, 0.0, &mut c, threads).unwrap();
                    let mut d = vec![1.0; m * n];
                    gemm_f32(m, n, k, 2.0, &a, sa, &b, sb, 3.0, &mut d, threads).unwrap();
                    for i in 0..m * n {
                        assert!((c[i] - expected[i]).abs() < 1e-4, "{} {}", c[i], expected[i]);
                        assert!((d[i] - (2.0 * expected[i] + 3.0)).abs() < 2e-4);
                    }
                }
            }
        }
    }

    #[test]
    fn a_short_operand_is_an_error_and_an_empty_product_is_not() {
        let mut c = vec![5.0; 4];
        let error = gemm_f32(2, 2, 3, 1.0, &[0.0; 5], (3, 1), &[0.0; 6], (2, 1), 0.0, &mut c, 1).unwrap_err();
        assert!(error.to_string().contains("operand `a`"), "{error}");
        assert!(gemm_f32(2, 2, usize::MAX, 1.0, &[0.0; 5], (3, 1), &[0.0; 6], (2, 1), 0.0, &mut c, 1).is_err());
        gemm_f32(2, 2, 0, 1.0, &[], (0, 1), &[], (2, 1), 2.0, &mut c, 1).unwrap();
        assert_eq!(c, [10.0; 4]);
    }
}
