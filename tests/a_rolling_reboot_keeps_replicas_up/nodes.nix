# One replica a host, each of which says itself that it answers.
{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta = { };
    gamma = { };
  };
  vms.web = {
    replicas = 3;
    notifies = true;
  };
}
