from simulation.conftest import make as make
