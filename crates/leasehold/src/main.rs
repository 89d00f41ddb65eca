//! The command `leasehold`; see the library beside it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    leasehold::command::run()
}
