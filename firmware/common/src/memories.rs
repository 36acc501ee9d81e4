//! What the images of real boards give to the network. `cargo xtask qemu` gives the same to an emulated board with such a processor: the
//! states must be the host's, and the instructions are counted.

use crate::Plan;

/// Memory for the network.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// How the arena is used.
    pub plan: Plan,
    /// 64-bit words of the arena.
    pub arena: usize,
    /// 32-bit words for weights in the form that a kernel wants; too few for a kernel, and one that reads them in place is taken.
    pub packed: usize,
}

const KIB: usize = 1024;

/// All that the arena has room for goes to the products of group sums, beside so many rows that are worked on together. More rows take
/// the room of products, fewer multiply the sums of cells again; what is best for the 9x9 model was counted.
const fn plan(tile: usize) -> Plan {
    Plan { products: usize::MAX, tile, ..Plan::DEVICE }
}

/// ESP32-C3.
pub const ESP32_C3: Memory = Memory { plan: plan(27), arena: 255 * KIB / 8, packed: 0 };
/// nRF52840.
pub const NRF52840: Memory = Memory { plan: plan(18), arena: 220 * KIB / 8, packed: 0 };
/// RP2350.
pub const RP2350: Memory = Memory { plan: plan(27), arena: 271 * KIB / 8, packed: 198 * KIB / 4 };
/// STM32H743.
pub const STM32H743: Memory = Memory { plan: plan(72), arena: 512 * KIB / 8, packed: 256 * KIB / 4 };
