"""Write one simulated hospital of the demo: its archive and labels as handed over, and the truth behind them."""

from pipeline import cli
from pipeline.datasets.inventory import identify, take_inventory
from pipeline.datasets.registry import load_site
from pipeline.key import load_key
from pipeline.params import load_params
from pipeline.simulation.archive import simulate
from pipeline.simulation.cohort import Hospital
from pipeline.simulation.spec import Simulate, SimulatedSite
from pipeline.tables.contract import write_table
from pipeline.tables.files import Manifest


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        out="folder for archive/, labels.csv, truth.json and truth.csv; what simulate left there is replaced",
        manifest="file for the archive's manifest",
    )
    arguments.add_argument("--site", required=True, help="a name under `sites` that has a section `simulate`")
    args = arguments.parse_args()
    seed = load_params(Simulate, "simulate", args.params).seed
    spec = load_params(SimulatedSite, f"sites.{args.site}.simulate", args.params)
    key = load_key(args.params)
    simulate(Hospital(args.site, spec, seed), args.out)
    adapter, site = load_site(args.site, args.params)
    sources = identify(adapter, site, args.site, args.params.parent, key)
    # By content: the files are new each time, and their times of change would differ.
    write_table(Manifest, take_inventory(sources, key, hash_content=True), args.manifest)


if __name__ == "__main__":
    cli.run(main)
