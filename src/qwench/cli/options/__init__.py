"""Options that commands share, and the objects they give: configs, parameters, models."""
