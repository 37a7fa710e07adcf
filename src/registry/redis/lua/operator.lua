-- The second part of the scripts of an operator, which need no lease. ARGV: 2 the layout, 3 the deployment.
local mismatch = other_layout(ARGV[2]) or other_deployment(ARGV[3])
if mismatch then
  return mismatch
end
