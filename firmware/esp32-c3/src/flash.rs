//! The partition of the model in the address space. The boot loader maps only the program.

use hrm_firmware::region;

/// Where the partition begins in flash, as `partitions.csv` has it.
const PARTITION: u32 = 0x20_0000;
/// KiB of a page of the flash's memory management unit.
const PAGE: u32 = 64;

unsafe extern "C" {
    // Functions of the ROM.
    fn Cache_Suspend_ICache() -> u32;
    fn Cache_Resume_ICache(autoload: u32);
    fn Cache_Invalidate_ICache_All();
    fn Cache_Dbus_MMU_Set(external: u32, address: u32, physical: u32, page_kib: u32, pages: u32, fixed: u32) -> u32;
}

/// Maps the partition to where the linker says that the region is. Whether a model is there, its header tells.
pub fn map_model() {
    let bytes = region::bytes();
    let pages = bytes.len() as u32 / (1024 * PAGE);
    critical_section::with(|_| map(bytes.as_ptr() as u32, pages));
}

/// In RAM: no instruction can be fetched from flash meanwhile.
#[esp_hal::ram]
fn map(address: u32, pages: u32) {
    // SAFETY: no interrupt comes, and code and data of this function are in RAM and ROM. The pages are those of nothing else.
    unsafe {
        let autoload = Cache_Suspend_ICache();
        Cache_Dbus_MMU_Set(0, address, PARTITION, PAGE, pages, 0);
        Cache_Invalidate_ICache_All();
        Cache_Resume_ICache(autoload);
    }
}
