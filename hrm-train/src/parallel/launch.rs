//! Which process of how many this is, from what the launchers put into the environment.
//!
//! | launcher | rank, number of ranks | rank on this machine | where the ranks meet |
//! |---|---|---|---|
//! | `torchrun` | `RANK`, `WORLD_SIZE` | `LOCAL_RANK` | `MASTER_ADDR`, `MASTER_PORT` |
//! | `mpirun` (Open MPI) | `OMPI_COMM_WORLD_RANK`, `_SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK` | `MASTER_ADDR`, or this machine if all ranks are on it |
//! | `mpiexec` (PMI) | `PMI_RANK`, `PMI_SIZE` | `MPI_LOCALRANKID` | the same |
//! | `srun` | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` or `SLURM_NTASKS` | `SLURM_LOCALID` | `MASTER_ADDR`, or the first machine of the step |
//!
//! The variables of the first three must agree where several are set, unless `torchrun` itself (`TORCHELASTIC_RUN_ID`) runs inside another
//! launcher. Those of Slurm count only if no other are set: they stay from the job in which another launcher runs.

use anyhow::{Context as _, bail, ensure};

/// Port where the ranks meet if nothing names one: that of PyTorch.
const PORT: u16 = 29_500;

/// The place of this process among those that train together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Who started it, for messages.
    pub launcher: &'static str,
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Number of this process on its machine, from 0, where the launcher tells.
    pub local_rank: Option<usize>,
    /// Number of processes on this machine, where the launcher tells.
    pub local_world: Option<usize>,
    /// Where they meet; `None` if there is one process.
    pub meeting: Option<Meeting>,
}

/// A store of keys and values that all ranks reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// Name or address of its machine.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether this process must start it: rank 0, unless the launcher runs one.
    pub serve: bool,
    /// What this run's keys begin with.
    pub prefix: String,
}

/// The variables of one launcher.
struct Names {
    launcher: &'static str,
    rank: &'static str,
    world: &'static [&'static str],
    local_rank: &'static str,
    local_world: &'static str,
    /// It always sets `local_rank`.
    local_known: bool,
}

const TORCHRUN: Names = Names {
    launcher: "torchrun",
    rank: "RANK",
    world: &["WORLD_SIZE"],
    local_rank: "LOCAL_RANK",
    local_world: "LOCAL_WORLD_SIZE",
    local_known: true,
};
const OPEN_MPI: Names = Names {
    launcher: "mpirun",
    rank: "OMPI_COMM_WORLD_RANK",
    world: &["OMPI_COMM_WORLD_SIZE"],
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_world: "OMPI_COMM_WORLD_LOCAL_SIZE",
    local_known: true,
};
const PMI: Names = Names {
    launcher: "mpiexec",
    rank: "PMI_RANK",
    world: &["PMI_SIZE"],
    local_rank: "MPI_LOCALRANKID",
    local_world: "MPI_LOCALNRANKS",
    local_known: false,
};
const SLURM: Names = Names {
    launcher: "srun",
    rank: "SLURM_PROCID",
    world: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
    local_rank: "SLURM_LOCALID",
    local_world: "SLURM_NTASKS_PER_NODE",
    local_known: true,
};

impl Launch {
    /// What the environment of this process says; `None`: no launcher started it.
    ///
    /// # Errors
    /// As [`Launch::read`].
    pub fn from_environment() -> anyhow::Result<Option<Self>> {
        Self::read(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// What the variables `get` say; `None`: those of no launcher are among them.
    ///
    /// # Errors
    /// Some variables of a launcher are set and others are missing, are no numbers or contradict each other; the message names them.
    pub fn read(get: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Option<Self>> {
        let inside = get("TORCHELASTIC_RUN_ID").is_some();
        let mut chosen: Option<(&Names, Self)> = None;
        for names in [&TORCHRUN, &OPEN_MPI, &PMI] {
            let Some(found) = place(names, get)? else { continue };
            match &chosen {
                None => chosen = Some((names, found)),
                Some(_) if inside => {}
                Some((other, first)) => ensure!(
                    (first.rank, first.world) == (found.rank, found.world),
                    "the environment contradicts itself: {} and {} say rank {} of {}, {} and {} say rank {} of {}",
                    other.rank,
                    other.world[0],
                    first.rank,
                    first.world,
                    names.rank,
                    names.world[0],
                    found.rank,
                    found.world
                ),
            }
        }
        // Within an allocation there are tasks without a number of this one.
        if chosen.is_none() && get(SLURM.rank).is_some() {
            chosen = place(&SLURM, get)?.map(|found| (&SLURM, found));
        }
        let Some((_, mut launch)) = chosen else { return Ok(None) };
        if launch.world > 1 {
            launch.meeting = Some(launch.meeting(get)?);
        }
        Ok(Some(launch))
    }

    fn meeting(&self, get: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Meeting> {
        let (rank, world, launcher) = (self.rank, self.world, self.launcher);
        let host = match get("MASTER_ADDR") {
            Some(host) => host,
            None if launcher == SLURM.launcher => match get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_JOB_NODELIST")) {
                Some(list) => first_host(&list)?,
                None => get("SLURM_LAUNCH_NODE_IPADDR")
                    .context("neither MASTER_ADDR nor SLURM_STEP_NODELIST, SLURM_JOB_NODELIST or SLURM_LAUNCH_NODE_IPADDR is set")?,
            },
            None if launcher != TORCHRUN.launcher && self.local_world == Some(world) => "127.0.0.1".to_owned(),
            None => bail!("this is rank {rank} of {world} ({launcher}), but MASTER_ADDR, the machine of rank 0, is not set"),
        };
        let port = match get("MASTER_PORT") {
            Some(text) => {
                text.parse().ok().filter(|&p| p > 0).with_context(|| format!("MASTER_PORT is `{text}`, expected a port, 1 to 65535"))?
            }
            None if launcher == TORCHRUN.launcher => bail!("this is rank {rank} of {world} (torchrun), but MASTER_PORT is not set"),
            // Two jobs on one machine must not meet.
            None => match get("SLURM_JOB_ID").and_then(|id| id.parse::<u32>().ok()) {
                Some(id) if launcher == SLURM.launcher => 20_000 + (id % 10_000) as u16,
                _ => PORT,
            },
        };
        // torchrun keeps a store of its own at that place; what is left in it of an attempt that failed must not be read.
        let agent = launcher == TORCHRUN.launcher && get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v == "True");
        let attempt = get("TORCHELASTIC_RESTART_COUNT").filter(|_| agent).unwrap_or_default();
        Ok(Meeting { host, port, serve: rank == 0 && !agent, prefix: format!("hrm-train/{attempt}") })
    }
}

/// What the variables of one launcher say, without the meeting.
fn place(names: &Names, get: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Option<Launch>> {
    let number = |name: &str| -> anyhow::Result<Option<usize>> {
        let Some(text) = get(name) else { return Ok(None) };
        Ok(Some(text.parse().ok().with_context(|| format!("{name} is `{text}`, expected a number"))?))
    };
    let rank = number(names.rank)?;
    let (world_name, world) = match names.world.iter().find(|name| get(name).is_some()) {
        Some(name) => (*name, number(name)?),
        None => (names.world[0], None),
    };
    let (rank, world) = match (rank, world) {
        (None, None) => return Ok(None),
        (Some(rank), Some(world)) => (rank, world),
        (Some(rank), None) => bail!("{} is {rank}, but {world_name} is not set: {} sets both", names.rank, names.launcher),
        (None, Some(world)) => bail!("{world_name} is {world}, but {} is not set: {} sets both", names.rank, names.launcher),
    };
    ensure!(rank < world, "{} is {rank}, but {world_name} is {world}: expected a rank below it", names.rank);
    let local_rank = number(names.local_rank)?;
    ensure!(
        local_rank.is_some() || !names.local_known,
        "{} is {rank} and {world_name} {world}, but {} is not set: {} sets all",
        names.rank,
        names.local_rank,
        names.launcher
    );
    if let Some(local) = local_rank {
        ensure!(local <= rank, "{} is {local}, but {} is {rank}: expected at most that", names.local_rank, names.rank);
    }
    // Slurm writes some of these numbers as lists: no number is no knowledge.
    let local_world = get(names.local_world).and_then(|text| text.parse::<usize>().ok());
    if let (Some(local), Some(n)) = (local_rank, local_world) {
        ensure!(
            local < n && n <= world,
            "{} is {local}, {} is {n} and {world_name} is {world}: expected them to grow in this order",
            names.local_rank,
            names.local_world
        );
    }
    Ok(Some(Launch { launcher: names.launcher, rank, world, local_rank, local_world, meeting: None }))
}

/// The first machine of a list of Slurm's: `gpu[03-07,12],login` is `gpu03`.
fn first_host(list: &str) -> anyhow::Result<String> {
    let host = match list.split_once('[').filter(|(name, _)| !name.contains(',')) {
        None => list.split(',').next().unwrap_or_default().to_owned(),
        Some((name, rest)) => {
            let (inside, after) = rest.split_once(']').with_context(|| format!("the list of machines `{list}` has no end"))?;
            let first = inside.split([',', '-']).next().unwrap_or_default();
            format!("{name}{first}{}", after.split(',').next().unwrap_or_default())
        }
    };
    ensure!(!host.is_empty() && !host.contains(['[', ']']), "the first machine of `{list}` cannot be told: set MASTER_ADDR");
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Option<Launch>> {
        Launch::read(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    fn launch(variables: &[(&str, &str)]) -> Launch {
        read(variables).unwrap().unwrap()
    }

    fn refused(variables: &[(&str, &str)]) -> String {
        format!("{:#}", read(variables).expect_err("must be refused"))
    }

    const TORCH: [(&str, &str); 6] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "node1"),
        ("MASTER_PORT", "1234"),
    ];
    const OMPI: [(&str, &str); 4] = [
        ("OMPI_COMM_WORLD_RANK", "1"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
    ];
    const SRUN: [(&str, &str); 5] = [
        ("SLURM_PROCID", "2"),
        ("SLURM_NTASKS", "4"),
        ("SLURM_LOCALID", "0"),
        ("SLURM_JOB_NODELIST", "gpu[03-05,9],login"),
        ("SLURM_JOB_ID", "123456"),
    ];

    fn meeting(host: &str, port: u16, serve: bool) -> Meeting {
        Meeting { host: host.to_owned(), port, serve, prefix: "hrm-train/".to_owned() }
    }

    #[test]
    fn nobody_launched_this() {
        assert_eq!(read(&[]).unwrap(), None);
        // A shell of an allocation is no task of a step.
        assert_eq!(read(&[("SLURM_NTASKS", "4"), ("SLURM_JOB_NODELIST", "a")]).unwrap(), None);
    }

    #[test]
    fn the_variables_of_each_launcher() {
        let found = launch(&TORCH);
        assert_eq!((found.launcher, found.rank, found.world, found.local_rank, found.local_world), ("torchrun", 3, 4, Some(1), Some(2)));
        assert_eq!(found.meeting, Some(meeting("node1", 1234, false)));
        let found = launch(&OMPI);
        assert_eq!((found.launcher, found.rank, found.world, found.local_rank), ("mpirun", 1, 2, Some(1)));
        assert_eq!(found.meeting, Some(meeting("127.0.0.1", PORT, false)));
        let found = launch(&[("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("MASTER_ADDR", "a")]);
        assert_eq!((found.launcher, found.rank, found.world, found.local_rank), ("mpiexec", 0, 2, None));
        assert_eq!(found.meeting, Some(meeting("a", PORT, true)));
        let found = launch(&SRUN);
        assert_eq!((found.launcher, found.rank, found.world, found.local_rank), ("srun", 2, 4, Some(0)));
        assert_eq!(found.meeting, Some(meeting("gpu03", 23_456, false)));
        // The step's number of tasks is that of the processes, MASTER_ADDR wins over the list.
        let found = launch(&[&SRUN[..], &[("SLURM_STEP_NUM_TASKS", "3"), ("MASTER_ADDR", "b"), ("MASTER_PORT", "7")]].concat());
        assert_eq!((found.world, found.meeting), (3, Some(meeting("b", 7, false))));
        // One rank meets nobody.
        let found = launch(&[("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")]);
        assert_eq!((found.world, found.meeting), (1, None));
    }

    #[test]
    fn the_store_of_torchrun_is_used() {
        let agent = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", "2"), ("RANK", "0")];
        let found = launch(&[&agent[..], &TORCH[1..2], &[("LOCAL_RANK", "0")], &TORCH[4..]].concat()).meeting.unwrap();
        assert_eq!((found.serve, found.prefix.as_str()), (false, "hrm-train/2"));
    }

    #[test]
    fn launchers_within_launchers() {
        let both = [&TORCH[..], &OMPI].concat();
        let error = refused(&both);
        assert!(
            error.contains("RANK and WORLD_SIZE say rank 3 of 4, OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE say rank 1 of 2"),
            "{error}"
        );
        assert_eq!(launch(&[&both[..], &[("TORCHELASTIC_RUN_ID", "x")]].concat()).rank, 3);
        // The job around mpirun has a task 0 of its own.
        assert_eq!(launch(&[&OMPI[..], &SRUN].concat()).launcher, "mpirun");
    }

    #[test]
    fn what_is_partial_or_contradicts_itself_is_refused() {
        for without in [0, 1, 2, 4, 5] {
            let mut variables = TORCH.to_vec();
            let (name, _) = variables.remove(without);
            let error = refused(&variables);
            assert!(error.contains(name) && error.contains("is not set"), "{error}");
        }
        let with = |name: &'static str, value: &'static str| {
            let mut variables = TORCH.to_vec();
            variables.iter_mut().filter(|(n, _)| *n == name).for_each(|v| v.1 = value);
            refused(&variables)
        };
        assert!(with("RANK", "4").contains("RANK is 4, but WORLD_SIZE is 4"));
        assert!(with("RANK", "-1").contains("RANK is `-1`, expected a number"));
        assert!(with("LOCAL_RANK", "2").contains("LOCAL_RANK is 2, LOCAL_WORLD_SIZE is 2"));
        assert!(with("LOCAL_WORLD_SIZE", "9").contains("LOCAL_WORLD_SIZE is 9 and WORLD_SIZE is 4"));
        assert!(with("MASTER_PORT", "99999").contains("MASTER_PORT is `99999`"));
        let far = [OMPI[0], OMPI[1], OMPI[2], ("OMPI_COMM_WORLD_LOCAL_SIZE", "1")];
        assert!(refused(&[far[0], far[1], ("OMPI_COMM_WORLD_LOCAL_RANK", "0"), far[3]]).contains("MASTER_ADDR, the machine of rank 0"));
        assert!(refused(&SRUN[..3]).contains("neither MASTER_ADDR nor"));
    }

    #[test]
    fn first_machines() {
        for (list, host) in [("a", "a"), ("a,b[1-2]", "a"), ("n[1,3-4]", "n1"), ("r[01-02]c,x", "r01c")] {
            assert_eq!(first_host(list).unwrap(), host);
        }
        for list in ["", "a[1-", "r[1-2]c[3-4]"] {
            assert!(first_host(list).is_err(), "{list}");
        }
    }
}
