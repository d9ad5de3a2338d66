# Manual: what these hosts run goes on without their agents, and stays theirs.
{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta = { };
    gamma = { };
  };
  vms.web = {
    failover = "manual";
    replicas = 3;
  };
}
