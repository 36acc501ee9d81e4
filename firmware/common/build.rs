//! Says to the code whether the processor has a stack limit register (ARMv8-M): the compiler tells no such thing.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(stack_limit)");
    if std::env::var("TARGET").is_ok_and(|target| target.starts_with("thumbv8m.main")) {
        println!("cargo::rustc-cfg=stack_limit");
    }
}
