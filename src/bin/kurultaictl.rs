//! `kurultaictl`, the client: kurultaictl(1).

use kurultai::ctl::{Console, Env, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let env = Env::from_process();
    let mut console = Console::from_process(&env);
    ExitCode::from(run(std::env::args_os().skip(1), &env, &mut console))
}
