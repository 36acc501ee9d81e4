//! The image: checks the kernels, counts their instructions, says so through semihosting and leaves the emulator.
//!
//! Lines: `kernel NAME`, `check COMPARISONS`, `part KERNEL INSTRUCTIONS WORK WHAT`, `segment KERNEL PLAN INSTRUCTIONS MACS HASH`, last `done`. PLAN is
//! `wide` for the wide model, which has a hash of its own.
use core::panic::PanicInfo;

use hrm_core::{Kernel, ModelView, Network, Plan};
use hrm_kernels_image::{bench, check};
use semihosting::{println, process};

#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../models/sudoku-9x9.hrm"));
/// 48 channels instead of 32, and four groupings, none of them folded.
static WIDE: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../models/sudoku-9x9-wide.hrm"));

const ROUNDS: usize = 150;
/// Words of memory for a segment in which every product is taken once.
const ARENA: usize = 100 * 1024;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("{}", info);
    process::exit(101)
}

/// Memory of everything.
struct Memory {
    check: check::Buffers,
    parts: bench::Buffers,
    #[cfg(feature = "cmsis-nn")]
    cmsis: crate::cmsis::Buffers,
    packed: [i32; 64 * 1024],
    arena: [u64; ARENA],
}

static mut MEMORY: Memory = Memory {
    check: check::Buffers::EMPTY,
    parts: bench::Buffers::EMPTY,
    #[cfg(feature = "cmsis-nn")]
    cmsis: crate::cmsis::Buffers::EMPTY,
    packed: [0; 64 * 1024],
    arena: [0; ARENA],
};

pub fn main() -> ! {
    crate::machine::start();
    // SAFETY: called once, and nothing else names it.
    let memory = unsafe { &mut *(&raw mut MEMORY) };
    for kernel in Kernel::available() {
        println!("kernel {}", kernel.name());
    }
    match check::run(&mut memory.check, 1, ROUNDS) {
        Ok(comparisons) => println!("check {}", comparisons),
        Err(difference) => {
            println!("error {:?}", difference);
            process::exit(103);
        }
    }
    let [view, wide] = [MODEL, WIDE].map(|model| match ModelView::new_checked(&model.0) {
        Ok(view) => view,
        Err(e) => {
            println!("error {}", e);
            process::exit(103);
        }
    });
    let mut now = crate::machine::instructions();
    let best = Kernel::best();
    let in_place = Network::packed_words(&view, best) > 0 && Kernel::best_in_place() == best;
    let all = Kernel::available().map(|k| (view, k, true)).chain(in_place.then_some((view, best, false)));
    for (view, kernel, packed) in all.chain([(wide, best, true)]) {
        let (form, packed) = if packed { ("", Some(&mut memory.packed[..])) } else { ("/in-place", None) };
        bench::parts(&view.block(0, 0), kernel, packed, &mut memory.parts, &mut now, &mut |c| {
            let [m, n, k] = c.shape;
            if k > 0 {
                println!("part {}{} {} {} {} {}x{}x{}", kernel.name(), form, c.instructions, c.work, c.what, m, n, k);
            } else {
                println!("part {}{} {} {} {}", kernel.name(), form, c.instructions, c.work, c.what);
            }
        });
    }
    #[cfg(feature = "cmsis-nn")]
    {
        let right = crate::cmsis::parts(&mut memory.cmsis, &mut now, &mut |c| {
            let [m, n, k] = c.shape;
            println!("part cmsis-nn {} {} {} {}x{}x{}", c.instructions, c.work, c.what, m, n, k);
        });
        if !right {
            println!("error CMSIS-NN's product is not the quotient");
            process::exit(103);
        }
    }
    for kernel in Kernel::available() {
        for (name, plan) in [("roomy", Plan::ROOMY), ("device", Plan::DEVICE)] {
            if kernel != Kernel::best() && name == "device" {
                continue;
            }
            segment(view, kernel, (name, plan), Some(&mut memory.packed), &mut memory.arena, &mut now);
        }
    }
    if in_place {
        segment(view, best, ("in-place", Plan::DEVICE), None, &mut memory.arena, &mut now);
    }
    segment(wide, best, ("wide", Plan::ROOMY), Some(&mut memory.packed), &mut memory.arena, &mut now);
    println!("done");
    process::exit(0)
}

fn segment(
    view: ModelView<'_>,
    kernel: Kernel,
    (name, plan): (&str, Plan),
    packed: Option<&mut [i32]>,
    arena: &mut [u64],
    now: &mut dyn FnMut() -> u64,
) {
    match bench::segment(view, kernel, plan, packed, arena, now) {
        Ok((c, hash)) => println!("segment {} {} {} {} {:016x}", kernel.name(), name, c.instructions, c.work, hash),
        Err(e) => println!("error {}", e),
    }
}
