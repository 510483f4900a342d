//! What `doctor` and `tune` are asked for: so many connections.

use crate::config::Config;
use crate::host::{Demand, SLOW_PERCENT};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// Connections at once [default: shards.connections_max of the configuration, or 1000000]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    connections: Option<u64>,
    /// Of a hundred clients so many do not keep up at the worst moment: what they have not read needs memory
    #[arg(long, value_name = "PERCENT", default_value_t = SLOW_PERCENT, value_parser = percent)]
    slow_percent: f64,
    /// The clients, or a proxy, run on this machine too: twice the sockets
    #[arg(long)]
    with_clients: bool,
}

/// Without anybody saying otherwise.
const CONNECTIONS: u64 = 1_000_000;

impl Flags {
    /// The demand on a gateway of this configuration.
    pub fn of(&self, config: &Config) -> Demand {
        let configured = Some(config.shards.connections_max as u64).filter(|n| *n > 0);
        let connections = self.connections.or(configured).unwrap_or(CONNECTIONS);
        Demand {
            clients_here: self.with_clients,
            ..Demand::new(connections, config).with_slow_percent(self.slow_percent)
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| "it must be a number".to_owned())?;
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err("it must be between 0 and 100".into()) }
}
