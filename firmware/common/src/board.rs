//! What an image needs to know of its board.

use crate::Plan;

/// A board: its name, its memory plan, its serial port, and a counter that runs while it works.
pub trait Board {
    /// The name, which reports carry.
    const NAME: &'static str;
    /// Flash of the program and RAM, in bytes, as `memory.x` has them.
    const SIZES: (u32, u32);
    /// How the network uses the arena.
    const PLAN: Plan = Plan::DEVICE;
    /// Nanoseconds (first) of this many ticks (second) of [`Board::ticks`]. An emulated instruction takes 1 ns.
    const NANOSECONDS_OF_TICKS: (u32, u32);

    /// Switches on the serial port, the counter and the watchdog, as far as `main` has not done it. Called once, first.
    fn start();

    /// A counter that goes up and wraps at 2^32.
    fn ticks() -> u32;

    /// A byte that has come in, if one has.
    fn receive() -> Option<u8>;

    /// Takes a byte to send, unless the one before is still under way.
    fn send(byte: u8) -> bool;

    /// Feeds the watchdog. Called before every segment, and all the time while there is none to work on.
    fn feed() {}

    /// Whether the host has gone since this was asked last; a serial port never knows.
    fn host_left() -> bool {
        false
    }
}
