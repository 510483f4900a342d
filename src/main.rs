//! The `fanwire` command.

fn main() -> std::process::ExitCode {
    fanwire::cli::main()
}
