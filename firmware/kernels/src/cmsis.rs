//! CMSIS-NN's matrix product with requantisation, from a checkout that `CMSIS_NN_DIR` named when the image was built, in our shapes.

use hrm_kernels_image::bench::Count;

/// Activations at most: 72 rows of 96.
const LEFT: usize = 72 * 96;
/// Weights at most: 192 rows of 48.
const RIGHT: usize = 192 * 48;
/// Results at most: 72 rows of 192.
const OUT: usize = 72 * 192;
/// With a multiplier of a half, results are sums over 2^13: most are within int8, some at its ends.
const SHIFT: i32 = -12;

/// Memory of [`parts`].
pub struct Buffers {
    left: [i8; LEFT],
    right: [i8; RIGHT],
    out: [i8; OUT],
    bias: [i32; 192],
    multipliers: [i32; 192],
    shifts: [i32; 192],
}

impl Buffers {
    /// All zero.
    pub const EMPTY: Self =
        Self { left: [0; LEFT], right: [0; RIGHT], out: [0; OUT], bias: [0; 192], multipliers: [0; 192], shifts: [0; 192] };
}

unsafe extern "C" {
    fn arm_nn_mat_mult_nt_t_s8(
        lhs: *const i8,
        rhs: *const i8,
        bias: *const i32,
        dst: *mut i8,
        dst_multipliers: *const i32,
        dst_shifts: *const i32,
        lhs_rows: i32,
        rhs_rows: i32,
        rhs_cols: i32,
        lhs_offset: i32,
        dst_offset: i32,
        activation_min: i32,
        activation_max: i32,
        row_address_offset: i32,
        lhs_cols_offset: i32,
    ) -> i32;
}

/// Counts the products of a block of the 9x9 shape; `false` if a result is more than a unit away from the quotient.
pub fn parts(b: &mut Buffers, now: &mut dyn FnMut() -> u64, tell: &mut dyn FnMut(Count)) -> bool {
    let fill = |values: &mut [i8], factor: u32, least: i8| {
        for (i, v) in values.iter_mut().enumerate() {
            *v = ((((i as u32 + 1).wrapping_mul(factor)) >> 24) as i8).max(least);
        }
    };
    fill(&mut b.left, 0x9E37_79B9, -128);
    fill(&mut b.right, 0x85EB_CA6B, -127);
    b.bias.iter_mut().enumerate().for_each(|(i, v)| *v = i as i32 * 641 - 60_000);
    b.multipliers.fill(1 << 30);
    b.shifts.fill(SHIFT);
    let mut right = true;
    for (n, k) in [(192, 32), (32, 96), (192, 48), (48, 96)] {
        let m = 72;
        let (rows, columns, depth) = (m as i32, n as i32, k as i32);
        let at = now();
        // SAFETY: `left` has m rows of k, `right` n rows of k, `out` m rows of n values; the vectors have n; no offset, no gap between rows.
        let status = unsafe {
            arm_nn_mat_mult_nt_t_s8(
                b.left.as_ptr(),
                b.right.as_ptr(),
                b.bias.as_ptr(),
                b.out.as_mut_ptr(),
                b.multipliers.as_ptr(),
                b.shifts.as_ptr(),
                rows,
                columns,
                depth,
                0,
                0,
                -128,
                127,
                columns,
                depth,
            )
        };
        let instructions = now() - at;
        right &= status == 0 && agrees(b, m, n, k);
        tell(Count { what: "matmul, requantised", shape: [m, n, k], instructions, work: (m * n * k) as u64 });
    }
    right
}

/// Whether every result is the sum over 2^13, up to a unit of rounding.
fn agrees(b: &Buffers, m: usize, n: usize, k: usize) -> bool {
    let mut rows = b.left.chunks_exact(k).take(m).zip(b.out.chunks_exact(n));
    rows.all(|(x, out)| {
        out.iter().zip(b.right.chunks_exact(k)).zip(&b.bias).all(|((&found, w), &bias)| {
            let sum: i32 = bias + x.iter().zip(w).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum::<i32>();
            (i32::from(found) - (sum >> (1 - SHIFT)).clamp(-128, 127)).abs() <= 1
        })
    })
}
